"""Proves the webhook sink against a real HTTP server that commits and then drops the connection."""

import asyncio
import contextlib
import json
import threading
from collections import Counter
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa
import structlog
from hongbao.adapters import sql, webhook
from hongbao.adapters.sql_ledger import SqlLedger
from hongbao.adapters.webhook import WebhookSink
from hongbao.cli.settings import read_settings
from hongbao.domain.errors import Rejected, Transient
from hongbao.settle.fund import Pool
from hongbao.settle.memory import MemoryLedger
from hongbao.settle.payout import DEFER_S, DEFERRED_MAX, PAYOUT_TRANSFERS_MAX, PaidOut, Payout
from hongbao.settle.ports import Posting, SinkAnswer, SinkReply, Transfer, TransferState

from tests.minted import CAMPAIGN
from tests.settle.claims import OPENED_AT_MS, SteppedClock
from tests.waiting import LIMIT_S, until

AMOUNT_FEN = 250


@dataclass
class Backend:
    """Is a payment backend: keeps idempotency keys, and misbehaves as it is told."""

    payments: dict[str, dict[str, object]] = field(default_factory=dict)
    calls: Counter[str] = field(default_factory=Counter)
    order: list[int] = field(default_factory=list)
    drop_after_commit: int = 0  # so many calls commit, and their connection is cut
    answer: int = 0  # answer every call with this status, and pay nothing
    broken_body: bytes = b""  # answer as if this were gzip, after the payment
    conflict: bool = False  # answer repeats with 409 and the first payment
    credentials: set[str] = field(default_factory=set)
    url: str = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = head.decode().split("\r\n")[1:]
                headers = dict(line.lower().split(": ", 1) for line in lines if line)
                self.credentials.add(headers.get("authorization", ""))
                body = await reader.readexactly(int(headers["content-length"]))
                status, reply = self.pay(headers["idempotency-key"], json.loads(body))
                if status == 0:
                    break
                data = self.broken_body or json.dumps(reply).encode()
                coding = "content-encoding: gzip\r\n" if self.broken_body else ""
                head = (
                    f"HTTP/1.1 {status} X\r\n{coding}content-length: {len(data)}\r\n\r\n".encode()
                )
                writer.write(head + data)
                await writer.drain()
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()

    def pay(self, key: str, payment: dict[str, object]) -> tuple[int, dict[str, object]]:
        self.calls[key] += 1
        self.order.append(int(str(payment["amount_fen"])))
        if self.answer:
            return self.answer, {}
        existed = key in self.payments
        first = self.payments.setdefault(key, payment)
        if self.drop_after_commit:
            self.drop_after_commit -= 1
            return 0, {}
        if existed and self.conflict:
            return 409, {**first, "paid_at": 1}
        return (200, {"status": "exists"}) if existed else (201, {"status": "paid"})


@pytest.fixture
async def backend() -> AsyncIterator[Backend]:
    made = Backend()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/pay"
    yield made
    server.close()


@pytest.fixture
async def sink(backend: Backend) -> AsyncIterator[WebhookSink]:
    async with WebhookSink(backend.url, CAMPAIGN, call_s_max=2, retry_s=0.001) as made:
        yield made


def transfer(serial: int, amount_fen: int = AMOUNT_FEN) -> Transfer:
    return Transfer(serial, (1 << 60) + serial, 1, 1, 3, amount_fen, OPENED_AT_MS)


def pending_ledger(engine: sa.Engine, *transfers: Transfer) -> SqlLedger:
    ledger = SqlLedger(engine)
    ledger.post(Posting(0, 0, 1, TransferState.PENDING, OPENED_AT_MS, transfers, ()))
    return ledger


def payout_of(ledger: SqlLedger, sink: WebhookSink, clock: SteppedClock | None = None) -> Payout:
    clock = clock or SteppedClock()
    return Payout(0, ledger, sink, paused=never_paused, clock=clock, campaign=CAMPAIGN)


def never_paused() -> bool:
    return False


def states(engine: sa.Engine) -> dict[int, int]:
    table = sql.transfers.c
    with engine.connect() as connection:
        rows = connection.execute(sa.select(table.serial, table.state)).all()
    return {row.serial: row.state for row in rows}


def user_credits(engine: sa.Engine) -> int:
    table = sql.accounts.c
    with engine.connect() as connection:
        query = sa.select(sa.func.sum(table.credited_fen)).where(table.kind == 2)
        return int(connection.execute(query).scalar() or 0)


@pytest.mark.parametrize("conflict", [False, True])
async def test_a_payment_whose_reply_was_lost_exists_and_is_credited_once(
    sqlite_engine: sa.Engine, backend: Backend, sink: WebhookSink, conflict: bool
) -> None:
    """F6: the backend commits and drops the connection; the retry finds the payment there."""
    backend.drop_after_commit, backend.conflict = 1, conflict
    ledger = pending_ledger(sqlite_engine, transfer(1))
    done = await payout_of(ledger, sink).step()
    assert (done.paid, done.existed) == (0, 1)
    assert backend.calls == {f"{CAMPAIGN}/1": 2}
    assert len(backend.payments) == 1
    assert states(sqlite_engine) == {1: TransferState.CREDITED}
    assert user_credits(sqlite_engine) == AMOUNT_FEN


async def test_a_crash_between_payment_and_credit_pays_nothing_more(
    sqlite_engine: sa.Engine, backend: Backend, sink: WebhookSink
) -> None:
    """F6: killed after the backend paid, before the ledger knew."""
    ledger = pending_ledger(sqlite_engine, transfer(1), transfer(2))
    assert (await sink.pay(transfer(1))).answer is SinkAnswer.PAID
    done = await payout_of(ledger, sink).step()
    assert (done.paid, done.existed) == (1, 1)
    assert (await payout_of(ledger, sink).step()).calls == 0
    assert len(backend.payments) == 2
    assert user_credits(sqlite_engine) == 2 * AMOUNT_FEN


async def test_the_payment_names_campaign_user_and_amount_exactly(
    backend: Backend, sink: WebhookSink
) -> None:
    await sink.pay(transfer(1))
    payment = {"transfer": "1", "user": str((1 << 60) + 1), "sponsor": 1, "amount_fen": AMOUNT_FEN}
    assert backend.payments == {f"{CAMPAIGN}/1": {"campaign": CAMPAIGN, **payment}}


async def test_large_amounts_are_paid_first(
    sqlite_engine: sa.Engine, backend: Backend, sink: WebhookSink
) -> None:
    """R53: the largest do not wait behind the many."""
    ledger = pending_ledger(sqlite_engine, *(transfer(n, amount_fen=n) for n in range(1, 400)))
    payout = payout_of(ledger, sink)
    await payout.step()
    assert min(backend.order) == 144
    await payout.step()
    assert len(backend.payments) == 399


@pytest.mark.parametrize("status", [500, 503, 429, 408])
async def test_a_backend_that_is_down_delays_and_loses_nothing(
    sqlite_engine: sa.Engine, backend: Backend, sink: WebhookSink, status: int
) -> None:
    backend.answer = status
    ledger, clock = pending_ledger(sqlite_engine, transfer(1)), SteppedClock()
    payout = payout_of(ledger, sink, clock)
    assert (await payout.step()).deferred == 1
    assert backend.calls.total() == 4
    assert (await payout.step()).calls == 0
    backend.answer = 0
    clock.pass_s(DEFER_S + 0.001)
    assert (await payout.step()).paid == 1
    assert states(sqlite_engine) == {1: TransferState.CREDITED}


async def test_a_wall_clock_that_jumps_back_delays_no_payment(
    sqlite_engine: sa.Engine, backend: Backend, sink: WebhookSink
) -> None:
    """F9: what is deferred is tried again in time, whatever the hour is said to be."""
    backend.answer = 503
    ledger, clock = pending_ledger(sqlite_engine, transfer(1)), SteppedClock()
    payout = payout_of(ledger, sink, clock)
    assert (await payout.step()).deferred == 1
    backend.answer = 0
    clock.now_ms -= 3_600_000
    clock.pass_s(DEFER_S + 0.001)
    assert (await payout.step()).paid == 1


@pytest.mark.parametrize("status", [401, 403, 404, 405, 407, 302])
async def test_an_answer_that_speaks_of_our_setup_delays_and_is_told_once(
    sqlite_engine: sa.Engine, backend: Backend, sink: WebhookSink, status: int
) -> None:
    """As found: an expired credential sent every claim of the evening into quarantine."""
    backend.answer = status
    ledger, clock = pending_ledger(sqlite_engine, *map(transfer, range(1, 9))), SteppedClock()
    payout = payout_of(ledger, sink, clock)
    with structlog.testing.capture_logs() as logs:
        assert await payout.step() == PaidOut(deferred=8)
    told = {"event": "webhook_setup_refused", "status": status, "host": "127.0.0.1"}
    assert [line for line in logs if line["log_level"] == "error"] == [
        told | {"log_level": "error"}
    ]
    backend.answer = 0
    clock.pass_s(DEFER_S + 0.001)
    assert await payout.step() == PaidOut(paid=8)


async def test_a_setup_that_breaks_again_or_otherwise_is_told_again(
    backend: Backend, sink: WebhookSink
) -> None:
    with structlog.testing.capture_logs() as logs:
        for serial, status in enumerate([401, 503, 401, 404, 0, 404], 1):
            backend.answer = status
            with contextlib.suppress(Transient):
                await sink.pay(transfer(serial))
    told = [line["status"] for line in logs if line["event"] == "webhook_setup_refused"]
    assert told == [401, 404, 404]


async def test_credentials_are_sent_with_every_call_and_never_logged(backend: Backend) -> None:
    headers = {"Authorization": "Bearer sesame"}
    with structlog.testing.capture_logs() as logs:
        async with WebhookSink(backend.url, CAMPAIGN, headers=headers, retry_s=0.001) as sink:
            await sink.pay(transfer(1))
            backend.answer = 401
            with pytest.raises(Transient) as caught:
                await sink.pay(transfer(2))
    assert backend.credentials == {"bearer sesame"}  # this backend reads headers in lower case
    assert logs
    assert "sesame" not in f"{logs} {caught.value!r} {sink!r}".lower()


async def test_a_reply_that_cannot_be_decoded_delays_and_loses_nothing(
    sqlite_engine: sa.Engine, backend: Backend, sink: WebhookSink
) -> None:
    """As found: it ended posting and payout of the whole shard."""
    backend.broken_body = b"not gzip"
    ledger, clock = pending_ledger(sqlite_engine, transfer(1)), SteppedClock()
    payout = payout_of(ledger, sink, clock)
    assert (await payout.step()).deferred == 1
    backend.broken_body = b""
    clock.pass_s(DEFER_S + 0.001)
    assert (await payout.step()).existed == 1
    assert states(sqlite_engine) == {1: TransferState.CREDITED}


@pytest.mark.parametrize("reply", [b"[" * 100_000, b"\xff\xfe", b"[]", b"null"])
def test_a_reply_that_is_no_object_is_an_empty_one(reply: bytes) -> None:
    assert webhook._body(httpx.Response(200, content=reply)) == {}


@pytest.mark.parametrize(
    "url", ["", "backend:8080/pay", "ftp://bank/pay", "http://", "http://[::1"]
)
async def test_an_address_that_is_no_url_is_refused_at_the_start(url: str, tmp_path: Path) -> None:
    with pytest.raises(Rejected):
        WebhookSink(url, CAMPAIGN)
    settings = tmp_path / "up.yaml"
    settings.write_text(json.dumps({"campaign": "campaign.yaml", "webhook_url": url}))
    with pytest.raises(Rejected, match="webhook_url"):
        read_settings(settings)


@dataclass
class HalfDeadSink:
    """Pays what is below a limit and never answers for what is above."""

    limit_fen: int
    paid: set[int] = field(default_factory=set)

    async def pay(self, one: Transfer) -> SinkReply:
        if one.amount_fen >= self.limit_fen:
            raise Transient("no answer")
        self.paid.add(one.serial)
        return SinkReply(SinkAnswer.PAID)


async def test_more_silent_payments_than_can_be_deferred_block_nothing_behind_them() -> None:
    """As found: with 4,096 deferred, the largest were tried for ever and nothing else."""
    silent, good = DEFERRED_MAX + 2 * PAYOUT_TRANSFERS_MAX, 100
    transfers = [transfer(n, amount_fen=n) for n in range(1, silent + good + 1)]
    ledger, sink = MemoryLedger(), HalfDeadSink(limit_fen=good + 1)
    ledger.post(Posting(0, 0, 1, TransferState.PENDING, OPENED_AT_MS, transfers, ()))
    clock = SteppedClock()
    payout = Payout(0, ledger, sink, paused=never_paused, clock=clock, campaign=CAMPAIGN)
    for _ in range(2 * len(transfers) // PAYOUT_TRANSFERS_MAX):
        await payout.step()
    assert sink.paid == set(range(1, good + 1))


class SlowSink:
    """Pays once it may, but for some that it never answers."""

    def __init__(self, silent: set[int]) -> None:
        self.paid: list[int] = []
        self.may = asyncio.Event()
        self.asked = False
        self._silent = silent

    async def pay(self, transfer: Transfer) -> SinkReply:
        self.asked = True
        await self.may.wait()
        if transfer.serial in self._silent:
            await asyncio.Event().wait()
        self.paid.append(transfer.serial)
        return SinkReply(SinkAnswer.PAID)


async def test_a_step_that_is_cut_off_records_what_it_paid(sqlite_engine: sa.Engine) -> None:
    """As found: under leases lost every 2 s, 5,000 payments went out and 131 were credited."""
    ledger, silent = pending_ledger(sqlite_engine, *map(transfer, range(1, 101))), {50, 51}
    sink = SlowSink(silent)
    payout = Payout(0, ledger, sink, paused=never_paused, clock=SteppedClock(), campaign=CAMPAIGN)
    sink.may.set()
    step = asyncio.create_task(payout.step())
    await until(lambda: len(sink.paid) == 98, "all others are paid")
    step.cancel()
    with pytest.raises(asyncio.CancelledError):
        await step

    def pending() -> set[int]:
        found = states(sqlite_engine)
        return {one for one, state in found.items() if state == TransferState.PENDING}

    await until(lambda: pending() == silent, "what was paid is recorded")
    assert sorted(sink.paid) == [one for one in range(1, 101) if one not in silent]


class BrokenSink(SlowSink):
    """Has a bug that shows at the tenth payment."""

    async def pay(self, transfer: Transfer) -> SinkReply:
        if len(self.paid) == 10:
            raise KeyError("a bug")
        return await super().pay(transfer)


async def test_a_step_that_fails_oddly_ends_all_its_payments_and_tells_by_what(
    sqlite_engine: sa.Engine,
) -> None:
    ledger, sink = pending_ledger(sqlite_engine, *map(transfer, range(1, 201))), BrokenSink(set())
    sink.may.set()
    payout = Payout(0, ledger, sink, paused=never_paused, clock=SteppedClock(), campaign=CAMPAIGN)
    with pytest.raises(KeyError, match="a bug"):
        await payout.step()
    await asyncio.sleep(0.05)
    credited = [one for one, state in states(sqlite_engine).items() if state == 1]
    assert sorted(credited) == sorted(sink.paid)
    assert len(sink.paid) == 10


async def test_a_step_that_is_cut_off_records_even_if_all_threads_are_busy(
    sqlite_engine: sa.Engine,
) -> None:
    """As found: the record waited for a thread, and was cancelled with the step."""
    ledger, busy = pending_ledger(sqlite_engine, *map(transfer, range(1, 101))), threading.Event()
    sink = SlowSink(set())
    payout = Payout(0, ledger, sink, paused=never_paused, clock=SteppedClock(), campaign=CAMPAIGN)
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(1) as threads:
        loop.set_default_executor(threads)
        step = asyncio.create_task(payout.step())
        await until(lambda: sink.asked, "payments begin")
        blocker = loop.run_in_executor(None, busy.wait, LIMIT_S)
        sink.may.set()
        await until(lambda: len(sink.paid) == 100, "all are paid")
        await asyncio.sleep(0.05)
        step.cancel()
        loop.call_later(0.2, busy.set)
        with pytest.raises(asyncio.CancelledError):
            await step
        await blocker
    assert set(states(sqlite_engine).values()) == {TransferState.CREDITED}


async def test_once_paused_a_step_begins_no_payment_and_the_next_one_goes_on_there() -> None:
    """What was not begun stays pending and is not counted; of no room to defer, none is skipped."""
    transfers = [transfer(n, amount_fen=n) for n in range(1, DEFERRED_MAX + 301)]
    ledger, sink = MemoryLedger(), HalfDeadSink(limit_fen=301)
    ledger.post(Posting(0, 0, 1, TransferState.PENDING, OPENED_AT_MS, transfers, ()))
    paused, clock = asyncio.Event(), SteppedClock()
    payout = Payout(0, ledger, sink, paused=paused.is_set, clock=clock, campaign=CAMPAIGN)
    for _ in range(DEFERRED_MAX // PAYOUT_TRANSFERS_MAX):
        await payout.step()
    paused.set()
    assert await payout.step() == PaidOut()
    paused.clear()
    assert await payout.step() == PaidOut(paid=PAYOUT_TRANSFERS_MAX)
    paused.set()
    assert await payout.step() == PaidOut()
    paused.clear()
    assert await payout.step() == PaidOut(paid=300 - PAYOUT_TRANSFERS_MAX)


@pytest.mark.parametrize("status", [400, 402, 409, 410, 422, 451])
async def test_a_refused_payment_is_quarantined_with_what_the_backend_said(
    sqlite_engine: sa.Engine, backend: Backend, sink: WebhookSink, status: int
) -> None:
    backend.answer = status
    ledger = pending_ledger(sqlite_engine, transfer(1))
    assert (await payout_of(ledger, sink).step()).refused == 1
    assert states(sqlite_engine) == {1: TransferState.REFUSED}
    with sqlite_engine.connect() as connection:
        row = connection.execute(sa.select(sql.quarantine)).one()
    assert (row.reason, row.held_fen, row.serial) == ("sink_refused", AMOUNT_FEN, 1)
    assert json.loads(row.evidence)["sink"].startswith(str(status))


async def test_a_key_that_paid_something_else_is_refused(
    backend: Backend, sink: WebhookSink
) -> None:
    backend.conflict = True
    await sink.pay(transfer(1))
    assert (await sink.pay(transfer(1, amount_fen=9))).answer is SinkAnswer.REFUSED


async def test_payments_that_are_cut_off_leave_the_sink_as_good_as_new(
    backend: Backend, sink: WebhookSink
) -> None:
    """A lease that moves cuts off what its holder pays; httpcore lost a connection each time."""
    for ticks in range(10):
        paying = [
            asyncio.create_task(sink.pay(transfer(serial)))
            for serial in range(2 * webhook.CONNECTIONS_MAX)
        ]
        for _ in range(ticks):
            await asyncio.sleep(0)
        for task in paying:
            task.cancel()
        await asyncio.gather(*paying, return_exceptions=True)
    began = sum(backend.calls.values())
    replies = await asyncio.gather(*(sink.pay(transfer(serial)) for serial in range(500)))
    assert {reply.answer for reply in replies} <= {SinkAnswer.PAID, SinkAnswer.EXISTS}
    assert sum(backend.calls.values()) >= began + 500
    assert len(backend.payments) == 500


async def test_no_backend_at_all_is_transient() -> None:
    async with WebhookSink("http://127.0.0.1:1/pay", CAMPAIGN, retry_s=0.001) as sink:
        with pytest.raises(Transient, match="tiny/1"):
            await sink.pay(transfer(1))


def test_a_pool_balance_counts_what_is_promised() -> None:
    pool = Pool(1, paid_in_fen=100, credited_fen=10, pending_fen=5, held_fen=3, refunded_fen=2)
    assert pool.balance_fen == 80
