"""F2, F3, F4: the claims owner killed (SIGKILL) at every point around a commit, again and again.

Clients ask until they have an answer, ask again afterwards, and race each other for packets;
settlement reads the log all the while. Owner, store and settlement are the real ones.
"""

import asyncio
import contextlib
import os
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hongbao.adapters import sql
from hongbao.adapters.clock import SystemClock
from hongbao.adapters.sql_ledger import SqlLedger
from hongbao.adapters.store_client import StoreClient
from hongbao.client.draws import Draw, seeded_draw
from hongbao.domain.claim import Claim, pack_claim, parse_claim
from hongbao.domain.errors import HongbaoError
from hongbao.mint.scheme import mint_scheme
from hongbao.redeem.machine import ClaimOutcome, parse_result
from hongbao.settle.ports import TransferState
from hongbao.settle.rules import Rules
from hongbao.settle.run import Settlement
from hongbao.settle.settler import Settler
from hongbao.shards.block import decode_block, position_of
from hongbao.shards.peers import GrpcPeers

from tests.contracts.store_contracts import StoreProcess
from tests.minted import CAMPAIGN, RUN, MintedCampaign, tiny_keyring, tiny_plan
from tests.processes import checkers
from tests.processes.checkers import Answered
from tests.processes.claimer import LIED, PLANE, POINTS, SHARD
from tests.processes.nursery import Nursery
from tests.processes.rainy import Transfer, short_folder
from tests.settle.claims import schemes_of, shard_claims, write_documents

LIVES = 15 * len(POINTS)
CALL_MAX = 3
CLIENTS = 6
RIVAL_SHARE, AGAIN_SHARE = 0.2, 0.2

pytestmark = [pytest.mark.slow, pytest.mark.processes, pytest.mark.xdist_group("faults")]


@dataclass
class History:
    """Is everything that clients heard, and what was left in the log and the ledger."""

    answers: list[Answered] = field(default_factory=list)
    second_answers: list[Answered] = field(default_factory=list)
    points: Counter[str] = field(default_factory=Counter)
    failures: int = 0
    claims: list[Claim] = field(default_factory=list)
    transfers: list[Transfer] = field(default_factory=list)


class Shard:
    """Is the way to the living owner."""

    def __init__(self, folder: Path, history: History) -> None:
        self._folder = folder
        self._history = history
        self._peers = GrpcPeers(call_s_max=1.0)
        self.epoch = 0

    async def ask(self, claim: Claim) -> Answered:
        """Ask until there is an answer, whoever owns the shard by then (F3)."""
        while True:
            address = f"unix:{self._folder}/owner.{self.epoch}"
            with suppress(HongbaoError):
                operation = pack_claim(claim)
                result = (await self._peers.submit(address, PLANE, SHARD, [operation]))[0]
                if isinstance(result, bytes):
                    outcome, amount_fen = parse_result(result)
                    return Answered(claim.serial, claim.user, ClaimOutcome(outcome), amount_fen)
            self._history.failures += 1
            await asyncio.sleep(0.01)

    async def close(self) -> None:
        await self._peers.close()


class Clients:
    """Open packets, one after another; some are raced for, some are asked for again."""

    def __init__(self, shard: Shard, claims: Iterator[Claim], draw: Draw, history: History) -> None:
        self._shard = shard
        self._claims = claims
        self._draw = draw
        self._history = history
        self.stopping = False

    async def run(self) -> None:
        while not self.stopping and (claim := next(self._claims, None)):
            users = [claim]
            if self._draw() < RIVAL_SHARE:
                users.append(claim._replace(user=claim.user + 1_000_000))
            again = self._draw() < AGAIN_SHARE
            self._history.answers += await asyncio.gather(*map(self._shard.ask, users))
            if again:
                self._history.answers.append(await self._shard.ask(claim))


@pytest.fixture(scope="module")
def history(seed: int) -> Iterator[History]:
    with short_folder() as folder:
        yield asyncio.run(open_and_kill(folder, seed, POINTS, LIVES))


async def open_and_kill(folder: Path, seed: int, points: Sequence[str], lives: int) -> History:
    history = History()
    minted = mint(folder)
    server = StoreProcess(folder)
    store = StoreClient(server.socket, server.path)
    engine = sql.open_engine(f"sqlite:///{folder / 'ledger.db'}")
    sql.prepare_schema(engine, CAMPAIGN, RUN)
    ledger = SqlLedger(engine)
    try:
        await write_documents(store, active={1: 1, 2: 1})
        settlement = settlement_of(store, minted, ledger)
        settling = asyncio.create_task(settlement.run(asyncio.Event()))
        await live_and_die(folder, seed, minted, history, [*points] * (lives // len(points)))
        settling.cancel()
        await asyncio.gather(settling, return_exceptions=True)
        while await settlement.step():
            pass
        pairs = await store.scan(b"log/claims/", b"log/claims0", 1 << 20)
        blocks = [decode_block(data, position=position_of(key)) for key, data in pairs]
        history.claims = [parse_claim(entry) for block in blocks for entry in block.entries]
        history.transfers = [
            Transfer(one.serial, one.user, one.amount_fen, True)
            for one in ledger.find_transfers([claim.serial for claim in history.claims])
        ]
    finally:
        await store.close()
        server.kill()
        engine.dispose()
    return history


def mint(folder: Path) -> MintedCampaign:
    (folder / "objects").mkdir()
    plan, keyring = tiny_plan(packets_a_batch=300), tiny_keyring()
    manifest = mint_scheme(plan, keyring, folder / "objects")
    return MintedCampaign(plan, manifest, keyring, folder / "objects")


def settlement_of(store: StoreClient, minted: MintedCampaign, ledger: SqlLedger) -> Settlement:
    async def load_schemes() -> object:
        return schemes_of(minted)

    settler = Settler(SHARD, ledger, state=TransferState.CREDITED, wall_ms=SystemClock().wall_ms)
    return Settlement(
        store,
        settler,
        Rules(store, CAMPAIGN, load_schemes),
        rounds=lambda: contextlib.nullcontext(True),
    )


async def live_and_die(
    folder: Path, seed: int, minted: MintedCampaign, history: History, deaths: list[str]
) -> None:
    """Let one owner after another die at its point; the last one lives and hands over."""
    draw = seeded_draw(seed)
    shard = Shard(folder, history)
    crowd = Clients(shard, iter(shard_claims(minted, SHARD)), seeded_draw(seed + 1), history)
    async with Nursery("tests.processes.claimer", folder / "claimer.log") as nursery:
        clients = [asyncio.create_task(crowd.run()) for _ in range(CLIENTS)]
        for epoch, point in enumerate([*deaths, "never"], 1):
            call = 1 + int(draw() * CALL_MAX)
            argument = {"folder": str(folder), "epoch": epoch, "point": point, "call": call}
            born = len(nursery.lines)
            pid = await nursery.bear(argument)
            await nursery.wait("serves", born)
            shard.epoch = epoch
            if point != "never":
                await nursery.wait("dead", born)
                history.points[point] += 1
        crowd.stopping = True
        await asyncio.gather(*clients)
        winners = {one.serial: one for one in history.answers if one.won}
        claims = [one for one in shard_claims(minted, SHARD) if one.serial in winners]
        history.second_answers = await asyncio.gather(
            *(shard.ask(one._replace(user=winners[one.serial].user)) for one in claims)
        )
        before = len(nursery.lines)
        os.kill(pid, signal.SIGTERM)
        await nursery.wait("dead", before)
    await shard.close()


def test_the_owner_died_at_every_point_of_a_commit(history: History) -> None:
    assert set(history.points) == set(POINTS)
    assert history.failures >= LIVES
    assert len(history.claims) > LIVES


def test_each_packet_has_one_winner_whoever_asks_and_how_often(history: History) -> None:
    """F3, F4."""
    assert sum(one.outcome == ClaimOutcome.ALREADY_OPENED for one in history.answers) > 10
    checkers.check_one_winner([*history.answers, *history.second_answers])
    checkers.check_claimed_once(history.claims)


def test_every_answer_is_in_the_log(history: History) -> None:
    """F2: nothing that was answered is lost, at whatever point the owner died."""
    checkers.check_answers_logged(history.answers, history.claims)


def test_asking_again_gives_the_same_answer(history: History) -> None:
    """F2, F3."""
    first = {one.serial: (one.user, one.amount_fen) for one in history.answers if one.won}
    assert {one.outcome for one in history.second_answers} == {ClaimOutcome.REPEATED}
    assert {one.serial: (one.user, one.amount_fen) for one in history.second_answers} == first


def test_every_claim_is_settled_exactly_once(history: History) -> None:
    """F2: settlement read along, behind the applied watermark, through all the deaths."""
    checkers.check_settled_once(history.claims, history.transfers)


def test_a_store_that_lies_about_durability_is_caught(seed: int) -> None:
    """The planted bug: a lost packet is opened once more, by whoever asks next."""
    with short_folder() as folder:
        history = asyncio.run(open_and_kill(folder, seed, [LIED], 6))
    with pytest.raises(AssertionError, match="packets, as"):
        checkers.check_one_winner([*history.answers, *history.second_answers])
