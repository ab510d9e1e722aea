"""The rain with its objects in S3 and its money in PostgreSQL (real servers), both killed.

One evening is shared. PostgreSQL is killed (kill -9) in the midst of slot 1 and comes back; so is
the S3 server, and while it is gone a gateway loses its disk (R6, F19's kin) and an owner of claims
is killed.
"""

import asyncio
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from hongbao.cli.rain import prepare_run
from hongbao.domain.errors import Rejected

from tests import postgres
from tests.processes import checkers
from tests.processes.rainy import Evening, Plot, Stage, play_evening, query, short_folder
from tests.servers import s3
from tests.stalls import Stalls, undisturbed

BUCKET, PREFIX = "rain", "stormy/evening"
URL = f"s3://{BUCKET}/{PREFIX}"
OPENED_MIN = 500
CREDIT_S_MAX = 10.0  # from a ledger that is back: settlement's longest pause is 2 s
REFUSED = "ticket_file_refused"
FETCH_MS = 5_000  # Envoy starts anew before: 20 s at load 9

reason = s3.why_not() or postgres.why_not()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.processes,
    pytest.mark.xdist_group("faults"),
    pytest.mark.skipif(reason is not None, reason=str(reason)),
]


@dataclass(frozen=True)
class Servers:
    """Is what the evening rests on, and what its story breaks."""

    objects: s3.S3Server
    ledger: postgres.Cluster

    async def story(self, stage: Stage) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._lose_objects(stage))
            group.create_task(self._lose_ledger(stage))

    async def _lose_objects(self, stage: Stage) -> None:
        """Lose the bucket, then a gateway with its disk, an owner of claims and a settler."""
        up, facts = stage.up, stage.notes.facts
        await stage.at(0, 0.1 + 0.05 * stage.draw())
        await asyncio.to_thread(self.objects.kill)
        facts["objects_lost_at_ms"] = up.clock.wall_ms()
        shutil.rmtree(up.run.cache("access-a-0"))
        stage.kill("access-a-0")
        stage.kill("redeem-a-0")
        stage.kill("settle-a-0")
        await self._until_refused(stage)
        alive = {one.process for one in up.specs if up.supervisor.pid(one.process)}
        facts["alive_without_objects"] = alive
        facts["files_without_objects"] = list(up.run.cache("access-a-0").glob("*.hbt"))
        await asyncio.to_thread(self.objects.start)
        facts["objects_back_at_ms"] = up.clock.wall_ms()
        facts["fetched"] = await self._until_fetched(stage)

    async def _until_fetched(self, stage: Stage) -> list[str]:
        """Wait until the gateway has files again, or the evening is over."""
        up, cache = stage.up, stage.up.run.cache("access-a-0")
        found: list[str] = []
        while not found and up.clock.wall_ms() < up.timeline.slots[-1].ends_at_ms:
            await asyncio.sleep(0.1)
            found = [path.name for path in cache.glob("*.hbt")]
        return found

    async def _until_refused(self, stage: Stage) -> None:
        """Wait until the gateway serves again and has said which files it cannot have.

        It wants none any more once the evening is over: `late` tells of it.
        """
        up, log = stage.up, stage.up.run.logs / "access-a-0.log"
        while f'"{REFUSED}"' not in log.read_text():
            if up.clock.wall_ms() > up.timeline.slots[-1].ends_at_ms:
                return
            await asyncio.sleep(0.1)

    async def _lose_ledger(self, stage: Stage) -> None:
        up, facts = stage.up, stage.notes.facts
        await stage.at(0, 0.6 + 0.2 * stage.draw())
        await asyncio.to_thread(self.ledger.kill)
        facts["ledger_lost_at_ms"] = up.clock.wall_ms()
        await asyncio.sleep(3.0)
        facts["ledger_start_at_ms"] = up.clock.wall_ms()
        await asyncio.to_thread(self.ledger.start)
        facts["ledger_back_at_ms"] = up.clock.wall_ms()


@pytest.fixture(scope="module")
def played(
    tmp_path_factory: pytest.TempPathFactory, seed: int, stalls: Stalls
) -> Iterator[tuple[Evening, Servers]]:
    with undisturbed(stalls, partial(play, tmp_path_factory, seed), came_too_late) as played:
        yield played


def came_too_late(played: tuple[Evening, Servers]) -> bool:
    """Tell whether the gateway began so late that no slot was left to fetch files for."""
    evening, _ = played
    left_ms = evening.timeline.slots[-1].ends_at_ms - evening.notes.facts["objects_back_at_ms"]
    return left_ms < FETCH_MS


@pytest.fixture(scope="module")
def evening(played: tuple[Evening, Servers]) -> Evening:
    return played[0]


@pytest.fixture(scope="module")
def servers(played: tuple[Evening, Servers]) -> Servers:
    return played[1]


@contextmanager
def play(folders: pytest.TempPathFactory, seed: int) -> Iterator[tuple[Evening, Servers]]:
    """Play the evening on servers of its own: a bucket belongs to one run."""
    with ExitStack() as stack:
        objects = stack.enter_context(s3.running_s3(folders.mktemp("s3") / "objects", BUCKET))
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for name, value in objects.environ().items():
            patch.setenv(name, value)
        servers = Servers(objects, stack.enter_context(postgres.started_cluster()))
        plot = Plot(
            seed,
            seconds=40.0,
            packets_a_slot=6_000,
            rate=250.0,
            users=600,
            lease_ttl_s=3.0,
            stores={"ledger_url": servers.ledger.url, "objects_url": URL},
            refund=True,
        )
        folder = stack.enter_context(short_folder())
        yield play_evening(folder, plot, servers.story), servers


def test_it_was_an_evening_with_claims_before_during_and_after_each_loss(evening: Evening) -> None:
    facts = evening.notes.facts
    for what in ("objects", "ledger"):
        lost, back = facts[f"{what}_lost_at_ms"], facts[f"{what}_back_at_ms"]
        assert any(claim.opened_at_ms < lost for claim in evening.claims)
        assert sum(lost < claim.opened_at_ms < back for claim in evening.claims) > 50, what
        assert any(claim.opened_at_ms > back for claim in evening.claims)
    assert len(evening.claims) > OPENED_MIN


def test_no_open_fails_while_objects_or_ledger_are_gone(evening: Evening) -> None:
    assert set(evening.load.opens) == {"OPENED"}
    checkers.check_promises_kept(evening.acknowledged, evening.claims)
    checkers.check_claimed_once(evening.claims)
    checkers.check_one_pod_a_file(evening.claims)


def test_an_owner_and_a_settler_come_back_without_the_object_store(evening: Evening) -> None:
    alive = evening.notes.facts["alive_without_objects"]
    assert {"redeem-a-0", "settle-a-0"} <= alive


def test_a_gateway_that_lost_its_disk_fetches_its_files_once_they_can_be_had(
    evening: Evening,
) -> None:
    """Not before, and nobody starts it again."""
    assert evening.notes.facts["files_without_objects"] == []
    refused = [one for one in evening.log_of("access-a-0") if one["event"] == REFUSED]
    assert refused
    assert all(URL in one["reason"] for one in refused)
    assert evening.notes.facts["fetched"]


def test_settlement_catches_up_by_itself_after_the_ledger_was_killed(evening: Evening) -> None:
    """F5 on PostgreSQL: every claim credited once, none in quarantine."""
    checkers.check_settled_once(evening.claims, evening.transfers)
    assert evening.audit["quarantined_fen"] == 0
    facts = evening.notes.facts
    lost_ms, start_ms = facts["ledger_lost_at_ms"], facts["ledger_start_at_ms"]
    credited = [at for (at,) in query(evening.run, "SELECT credited_at_ms FROM transfers")]
    assert not [at for at in credited if lost_ms + 500 < at < start_ms - 500]
    assert any(at < lost_ms for at in credited)
    first_ms = min(at for at in credited if at > start_ms)
    assert first_ms - facts["ledger_back_at_ms"] < CREDIT_S_MAX * 1000


def test_the_money_adds_up_and_what_is_left_went_back(evening: Evening) -> None:
    audit = evening.audit
    assert audit["equations"] == "hold"
    assert audit["credited_fen"] == audit["opened_fen"] == sum(c.amount_fen for c in evening.claims)
    assert (audit["paid_twice"], audit["claims_lost"], audit["pending_fen"]) == (0, 0, 0)
    assert audit["refunded_fen"] > 0


def test_a_second_start_uploads_nothing_and_a_strangers_run_is_refused(
    evening: Evening, servers: Servers, tmp_path: Path
) -> None:
    settings, _ = evening.run.read_specs()
    stored = sorted(servers.objects.folder.rglob("*.hbt"))
    before = [path.stat().st_mtime_ns for path in stored]
    prepare_run(settings, lambda what, done, whole: None)
    assert [path.stat().st_mtime_ns for path in stored] == before
    stranger = settings.model_copy(update={"run_dir": tmp_path / "run"})
    with pytest.raises(Rejected, match="another database"):
        prepare_run(stranger, lambda what, done, whole: None)
    stranger = stranger.model_copy(update={"ledger_url": None})
    with pytest.raises(Rejected, match=r"lacks mint\.keys"):
        prepare_run(stranger, lambda what, done, whole: None)
