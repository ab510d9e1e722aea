"""Runs `hongbao fund` and `hongbao audit` on a run's folder whose processes are down."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import sqlalchemy as sa
from hongbao.adapters import sql
from hongbao.adapters.clock import SystemClock
from hongbao.adapters.lmdb import LmdbStore
from hongbao.adapters.sql_fund import SqlFund
from hongbao.adapters.sql_ledger import SqlLedger
from hongbao.cipher.keyring import new_keyring, write_keyring
from hongbao.cli import fund, main
from hongbao.cli.run_claim import claim_ledger
from hongbao.cli.run_dir import ProcessSpec, RunDir
from hongbao.cli.settings import UpSettings
from hongbao.cli.stores import Stores
from hongbao.domain.campaign import Slot
from hongbao.domain.claim import Claim
from hongbao.domain.cursor import RESERVED, RETURNED, CursorEntry, cursor_key, pack_cursor
from hongbao.domain.errors import Transient
from hongbao.domain.ids import SlotNumber
from hongbao.domain.script import plan_campaign
from hongbao.domain.timeline import Closed, Timeline
from hongbao.mint.scheme import mint_scheme
from hongbao.settle.book import KeyRules
from hongbao.settle.ports import TransferState
from hongbao.settle.settler import Settler
from hongbao.shards.host import Member

from tests.funding.files import small_campaign, small_files
from tests.minted import FixedEntropy, MintedCampaign
from tests.report.samples import write_sample_run
from tests.settle.claims import blocks_of, book_of, shard_claims, write_log

Command = Callable[..., tuple[int, str]]


class Night:
    """Is the folder of a run that has been played: 50 packets of shard 0 are opened."""

    def __init__(self, folder: Path, *, ends_at_ms: int = 2000) -> None:
        source = folder / "campaign"
        source.mkdir()
        for name, data in small_files().items():
            (source / name).write_bytes(data)
        self.run = RunDir(folder / "run")
        self.settings = UpSettings(
            campaign=source / "campaign.yaml",
            run_dir=self.run.path,
            claims_shards=2,
            ticket_shards=2,
        )
        self.campaign = small_campaign()
        self.run.objects.mkdir(parents=True)
        self.run.keys.mkdir()
        self.run.write_specs(self.settings, [])
        plan = plan_campaign(self.campaign, ticket_shards=2, claims_shards=2)[0]
        key_ids = sorted({key for batch in plan.batches for key in batch.key_ids})
        keyring = new_keyring(self.campaign.campaign, key_ids, FixedEntropy())
        write_keyring(self.run.keys / "access.keys", keyring.for_role("access"), "a passphrase")
        manifest = mint_scheme(plan, keyring, self.run.objects)
        self.minted = MintedCampaign(plan, manifest, keyring, self.run.objects)
        self.claims = shard_claims(self.minted, 0, count=50)
        self.ends_at_ms = ends_at_ms
        asyncio.run(self._play())

    async def _play(self) -> None:
        store = LmdbStore(self.run.store, monotonic_s=SystemClock().monotonic_s)
        await store.start()
        slots = (
            Slot(SlotNumber(1), "one", 0, 1000),
            Slot(SlotNumber(2), "two", 1000, self.ends_at_ms),
        )
        prefix = f"campaigns/{self.campaign.campaign}"
        await store.put(f"{prefix}/timeline", Timeline(slots).to_json())
        await store.put(f"{prefix}/active", b'{"1": 1, "2": 1}')
        for file in self.minted.manifest.files:
            entry = CursorEntry(RETURNED, 1, 1, file.count, file.count, file.count)
            whole = CursorEntry(RESERVED, 1, 1, 0, file.count, 0)
            await store.create(cursor_key(file.file, 0), pack_cursor(whole))
            await store.create(cursor_key(file.file, 1), pack_cursor(entry))
        await write_log(store, 0, blocks_of(self.claims))
        await store.close()

    def change(self, work: Callable[[LmdbStore], Awaitable[None]]) -> None:
        """Change what the run's store holds, as a process of the run would."""

        async def open_and_work() -> None:
            store = LmdbStore(self.run.store, monotonic_s=SystemClock().monotonic_s)
            await store.start()
            await work(store)
            await store.close()

        asyncio.run(open_and_work())

    def settle(self, keys: KeyRules | None = None) -> None:
        url = self.run.ledger_url(self.run.read_specs()[0])
        engine = claim_ledger(self.run, url, self.campaign.campaign)
        settler = Settler(
            0, SqlLedger(engine), state=TransferState.CREDITED, wall_ms=SystemClock().wall_ms
        )
        settler.settle(blocks_of(self.claims), book_of(self.minted, keys=keys))
        engine.dispose()


def opened_fen(claims: list[Claim]) -> int:
    return sum(claim.amount_fen for claim in claims)


@pytest.fixture
def hongbao(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Give the command line: words in, exit status and standard output out."""

    def call(*words: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["hongbao", *words])
        capsys.readouterr()
        try:
            main.main()
            status = 0
        except SystemExit as stop:
            status = int(stop.code or 0)
        captured = capsys.readouterr()
        return status, captured.out + (captured.err if status else "")

    return call


@pytest.mark.parametrize(("lives", "residue_packets"), [(True, 0), (False, 7)])
def test_what_a_living_pod_reserved_is_no_residue(
    tmp_path: Path, hongbao: Command, lives: bool, residue_packets: int
) -> None:
    """F1: only what an instance died with is lost; an audit may come while the rain goes on."""
    night = Night(tmp_path)
    night.run.write_specs(night.settings, [ProcessSpec("access-a-0", "access", "a", pod=3)])
    file = night.minted.manifest.files[0]

    async def reserve(store: LmdbStore) -> None:
        back = CursorEntry(RETURNED, 1, 1, file.count - 7, file.count, file.count - 7)
        held = CursorEntry(RESERVED, 3, 5, file.count - 7, file.count, file.count - 7)
        await store.put_many([(cursor_key(file.file, 1), pack_cursor(back))])
        await store.create(cursor_key(file.file, 2), pack_cursor(held))
        await store.put("pods/3/epoch", b"5")
        if lives:
            member = Member("access-a-0", "a", "", "access").to_json()
            assert await store.acquire("member/access-a-0", "it", ttl_s=60.0, value=member)

    night.change(reserve)
    status, text = hongbao("audit", str(night.run.path), "--json")
    assert (status, json.loads(text)["residue_packets"]) == (0, residue_packets), text


def test_money_goes_in_and_the_rest_comes_back_and_the_audit_proves_it(
    tmp_path: Path, hongbao: Command
) -> None:
    night = Night(tmp_path)
    run = ("--run", str(night.run.path))
    pools = json.loads(hongbao("fund", "status", *run, "--json")[1])["pools"]
    assert [row["missing_fen"] for row in pools] == [row["deposit_fen"] for row in pools]
    assert hongbao("fund", "pay-in", "--all", *run)[0] == 0
    status, text = hongbao("fund", "pay-in", "--all", *run, "--json")
    assert status == 0
    assert [row["new"] for row in json.loads(text)["movements"]] == [False, False]
    status, text = hongbao("fund", "refund", "--grace-s", "0", "--wait-s", "1", *run)
    assert status == 75
    assert "claims/0" in text
    night.settle()
    assert hongbao("fund", "refund", "--grace-s", "0", *run)[0] == 0
    assert hongbao("fund", "refund", "--grace-s", "0", *run) == (0, "nothing to return\n")
    status, text = hongbao("audit", str(night.run.path), "--json")
    line = json.loads(text)
    assert (status, line["equations"]) == (0, "hold")
    assert line["minted_fen"] == 300_000
    assert line["credited_fen"] == opened_fen(night.claims)
    assert line["refunded_fen"] == line["unclaimed_fen"]
    status, text = hongbao("fund", "status", *run, "--json")
    assert [row["balance_fen"] for row in json.loads(text)["pools"]] == [0, 0]
    assert "dairy" in hongbao("fund", "status", *run)[1]


def test_a_broken_equation_is_exit_3_and_shown_with_its_example(
    tmp_path: Path, hongbao: Command
) -> None:
    night = Night(tmp_path)
    night.settle()
    run = ("--run", str(night.run.path))
    hongbao("fund", "pay-in", "--all", *run)
    engine = sql.open_engine(night.run.ledger_url(night.run.read_specs()[0]))
    with engine.begin() as connection:
        serial = night.claims[0].serial
        connection.execute(sa.text("DELETE FROM transfers WHERE serial = :s"), {"s": serial})
    engine.dispose()
    tables = tmp_path / "audit.json"
    status, text = hongbao("audit", *run, "--tables", str(tables))
    assert status == 3
    assert f"no_claim_lost: serial={serial}" in text
    document = json.loads(tables.read_text())
    assert document["claims_lost"] == 1
    assert "no_claim_lost" in document["equations"]
    seen = tmp_path / "seen.txt"
    seen.write_text("12\nx\n")
    status, text = hongbao("audit", *run, "--acknowledged", str(seen))
    assert (status, "line 2" in text) == (2, True)


def test_nothing_goes_back_before_every_living_redeem_process_has_closed(
    tmp_path: Path, hongbao: Command
) -> None:
    """As found: refunds, then an open that was acknowledged and could never be paid."""
    night = Night(tmp_path)
    night.settle()
    key = f"campaigns/{night.campaign.campaign}/closed"
    run = ("--run", str(night.run.path))
    refund = ("fund", "refund", "--grace-s", "0", "--by", "wang", *run)
    hongbao("fund", "pay-in", "--all", *run)

    async def live(store: LmdbStore) -> None:
        value = b'{"role": "redeem"}'
        assert await store.acquire("member/redeem-a-0", "redeem-a-0", ttl_s=60, value=value)

    async def obey(store: LmdbStore) -> None:
        closed = await store.read(key)
        assert Closed.from_json(closed.value).by == "wang"
        ack = json.dumps({"revision": closed.revision}).encode()
        await store.put(f"acks/{key}/redeem-a-0", ack)

    night.change(live)
    status, text = hongbao(*refund, "--wait-s", "1")
    assert (status, "not yet effective on: redeem-a-0" in text) == (75, True)
    engine = sql.open_engine(night.run.ledger_url(night.run.read_specs()[0]))
    assert {pool.refunded_fen for pool in SqlFund(engine).pools()} == {0}
    engine.dispose()
    night.change(obey)
    assert hongbao(*refund)[0] == 0


async def test_logs_that_were_closed_in_time_are_closed_however_long_leases_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As found: "somebody holds open the logs of", and none was named."""
    left: list[int] = []

    async def close_slowly(*_: object, **__: object) -> None:
        await asyncio.Event().wait()

    async def still_open(*_: object) -> list[int]:
        return left

    monkeypatch.setattr(fund, "close_logs", close_slowly)
    monkeypatch.setattr(fund, "open_logs", still_open)
    opened = cast(Stores, SimpleNamespace(coordination=None, log_store=None))
    await fund._close_logs(opened, [0, 1], 0.01)
    left.append(1)
    with pytest.raises(Transient, match="the logs of claims/1"):
        await fund._close_logs(opened, [0, 1], 0.01)


def test_refunds_are_too_early_before_the_campaign_is_over(
    tmp_path: Path, hongbao: Command
) -> None:
    night = Night(tmp_path, ends_at_ms=1 << 43)
    night.settle()
    status, text = hongbao("fund", "refund", "--run", str(night.run.path))
    assert status == 75
    assert "the campaign is over in" in text

    async def still_open(store: LmdbStore) -> None:
        assert not (await store.read(f"campaigns/{night.campaign.campaign}/closed")).value

    night.change(still_open)


def test_a_wrong_pay_in_is_exit_2_and_says_which_field(tmp_path: Path, hongbao: Command) -> None:
    night = Night(tmp_path)
    run = ("--run", str(night.run.path))
    for words, field in (
        (("nobody", "5.00", "--reference", "r"), "sponsor"),
        (("dairy", "5", "--reference", "r"), "amount"),
        (("dairy", "0.00", "--reference", "r"), "amount"),
        (("dairy", "5.00", "--reference", "refund/1"), "reference"),
    ):
        status, text = hongbao("fund", "pay-in", *words, *run)
        assert (status, text.startswith(f"error: {field}:")) == (2, True), text
    assert hongbao("fund", "pay-in", "dairy", *run)[0] == 2
    assert hongbao("fund", "pay-in", "--all", *run)[0] == 0
    status, text = hongbao("fund", "pay-in", "dairy", "0.01", "--reference", "again", *run)
    assert (status, text.startswith("error: amount: sponsor")) == (2, True), text


def test_a_quarantined_claim_is_listed_released_and_the_audit_holds(
    tmp_path: Path, hongbao: Command
) -> None:
    """As found: quarantine had no way out."""
    night = Night(tmp_path)
    denied = night.claims[0].key_id
    night.settle(KeyRules(denied=frozenset({denied})))
    run = ("--run", str(night.run.path))
    hongbao("fund", "pay-in", "--all", *run)
    rows = json.loads(hongbao("quarantine", "list", *run, "--json")[1])["claims"]
    assert {row["reason"] for row in rows} == {"key_denied"}
    assert len(rows) == sum(claim.key_id == denied for claim in night.claims)

    def keys(deny: list[int]) -> None:
        document = json.dumps({"deny": deny, "allow": None}).encode()

        async def write(store: LmdbStore) -> None:
            await store.put(f"campaigns/{night.campaign.campaign}/keys", document)

        night.change(write)

    serial = rows[0]["serial"]
    release = ("quarantine", "release", str(serial), "--why", "it did not leak", *run)
    keys([denied])
    status, text = hongbao(*release)
    assert (status, "still fails: key_denied" in text) == (2, True)
    keys([])
    assert "(was released" not in hongbao(*release)[1]
    assert json.loads(hongbao(*release, "--json")[1])["new"] is False
    assert len(json.loads(hongbao("quarantine", "list", *run, "--json")[1])["claims"]) + 1 == len(
        rows
    )
    assert "key_denied" in hongbao("quarantine", "list", "--all", *run)[1]
    status, text = hongbao("audit", *run, "--json")
    assert (status, json.loads(text)["equations"]) == (0, "hold")
    assert hongbao("quarantine", "release", "999999999", "--why", "x", *run)[0] == 2


def test_the_report_of_a_run_is_drawn_from_its_folder(tmp_path: Path, hongbao: Command) -> None:
    """As found: only a demo wrote what a report is drawn from."""
    night = Night(tmp_path)
    night.settle()
    assert hongbao("fund", "pay-in", "--all", "--run", str(night.run.path))[0] == 0
    assert hongbao("report", str(night.run.path)) == (0, f"{night.run.path}/report.html\n")
    page = (night.run.path / "report.html").read_text()
    assert "all money equations hold" in page
    assert f"¥{opened_fen(night.claims) / 100:,.2f}" in page
    assert "Packets by slot" in page
    assert "Issue against plan" not in page


def test_the_report_of_a_run_shows_what_clients_saw_where_they_wrote_it_down(
    tmp_path: Path, hongbao: Command
) -> None:
    night = Night(tmp_path)
    assert hongbao("fund", "pay-in", "--all", "--run", str(night.run.path))[0] == 0
    seen = night.run.path / "report"
    write_sample_run(seen)
    for name in ("report.json", "audit.json"):
        (seen / name).unlink()
    lost = {"packet": 1 << 35, "user": 1, "amount_fen": 1, "at_ms": 1}
    (seen / "acknowledged.jsonl").write_text(json.dumps(lost) + "\n")
    assert hongbao("report", str(night.run.path), "--out", str(tmp_path / "my.html"))[0] == 0
    page = (tmp_path / "my.html").read_text()
    assert "Issue against plan" in page
    assert "broken: acknowledged_claims_kept" in page


def test_a_demos_run_is_drawn_as_the_demo_left_it(tmp_path: Path, hongbao: Command) -> None:
    write_sample_run(tmp_path / "report")
    assert hongbao("report", str(tmp_path)) == (0, f"{tmp_path}/report.html\n")
    assert "seed 20160207" in (tmp_path / "report.html").read_text()


def test_a_folder_without_a_run_is_exit_2(tmp_path: Path, hongbao: Command) -> None:
    for command in ("audit", "report"):
        status, text = hongbao(command, str(tmp_path))
        assert status == 2
        assert "holds no run" in text


@pytest.mark.parametrize("words", [("fund", "refund", "--grace-s", "0", "--run"), ("audit",)])
def test_no_money_goes_back_by_a_list_that_lacks_an_active_scheme(
    tmp_path: Path, hongbao: Command, words: tuple[str, ...]
) -> None:
    """The object store's list of names may be an old one while that is down."""
    night = Night(tmp_path)
    night.settle()
    assert hongbao("fund", "pay-in", "--all", "--run", str(night.run.path))[0] == 0

    async def activate(store: LmdbStore) -> None:
        await store.put(f"campaigns/{night.campaign.campaign}/active", b'{"1": 1, "2": 2}')

    night.change(activate)
    status, text = hongbao(*words, str(night.run.path))
    assert status == 75, text
    assert "schemes [2] are active" in text
