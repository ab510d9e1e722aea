"""F1, F2, F3, F5, F7 on a whole run: access, redeem and settle processes killed under load.

One evening is shared by all tests here: seeded SIGKILLs of gateways, claims owners and settle
processes, and a claims owner stopped (SIGSTOP) past its lease and continued.
"""

import asyncio
import os
import signal
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial

import pytest

from tests.processes import checkers
from tests.processes.rainy import Evening, Plot, Stage, play_evening, short_folder
from tests.stalls import Stalls, undisturbed
from tests.waiting import LIMIT_S

WINDOW_PACKETS = 2 * 2048  # AccessLimits: reserve_files × reserve_records
KILLS = {"access": 4, "redeem": 3, "settle": 5}
PAUSED = "redeem-b-0"

pytestmark = [pytest.mark.slow, pytest.mark.processes, pytest.mark.xdist_group("faults")]


async def storm(stage: Stage) -> None:
    """Kill a process of each role again and again; pause an owner in the first slot's midst."""
    unpaused = asyncio.Event()
    unpaused.set()
    async with asyncio.TaskGroup() as group:
        for role, times in KILLS.items():
            shares = sorted(0.02 + 0.86 * stage.draw() for _ in range(times))
            victims = [stage.draw() for _ in range(times)]
            plan = list(zip(shares, victims, strict=True))
            group.create_task(kill_at(stage, role, plan, unpaused))
        group.create_task(pause_owner(stage, unpaused))


async def kill_at(
    stage: Stage, role: str, plan: list[tuple[float, float]], unpaused: asyncio.Event
) -> None:
    """Kill a living process of a role at each moment; owners only while none of them is paused."""
    up = stage.up
    first, last = up.timeline.slots[0].starts_at_ms, up.timeline.slots[-1].ends_at_ms
    for share, victim in plan:
        at_ms = first + int((last - first) * share)
        await asyncio.sleep(max(0.0, (at_ms - up.clock.wall_ms()) / 1000))
        if role == "redeem":
            await unpaused.wait()
        living = [one.process for one in up.of(role=role) if up.supervisor.pid(one.process)]
        if living:
            stage.kill(living[int(victim * len(living))])


async def pause_owner(stage: Stage, unpaused: asyncio.Event) -> None:
    """Stop an owner for twice its lease; note who owned its shards before and after (F7)."""
    up, facts = stage.up, stage.notes.facts
    await stage.at(0, 0.6)
    unpaused.clear()
    await asyncio.sleep(1.5 * stage.plot.lease_ttl_s)  # leases of owners that died before run out
    facts["before"] = await owned_beside_another(stage)
    pid = up.supervisor.pid(PAUSED)
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        await asyncio.sleep(2.5 * stage.plot.lease_ttl_s)
        facts["after"] = await owned_by_others(stage, facts["before"])
    finally:
        os.kill(pid, signal.SIGCONT)
    await asyncio.sleep(1.0)
    facts["continued"] = up.supervisor.pid(PAUSED) == pid
    unpaused.set()


async def owned_beside_another(stage: Stage) -> dict[int, tuple[str, int]]:
    """Wait until the owner has shards and so has another; return the owner's, with their epochs."""
    while True:
        owners = await stage.owners()
        if len({name for name, _ in owners.values()}) == 2:
            return {shard: one for shard, one in owners.items() if one[0] == PAUSED}
        await asyncio.sleep(0.05)


async def owned_by_others(stage: Stage, shards: Collection[int]) -> dict[int, tuple[str, int]]:
    """Wait until another owner has each of the shards; return all owners."""
    async with asyncio.timeout(LIMIT_S):
        while True:
            owners = await stage.owners()
            if all(shard in owners and owners[shard][0] != PAUSED for shard in shards):
                return owners
            await asyncio.sleep(0.05)


@pytest.fixture(scope="module")
def evening(seed: int, stalls: Stalls) -> Iterator[Evening]:
    with undisturbed(stalls, partial(played, seed)) as evening:
        yield evening


@contextmanager
def played(seed: int) -> Iterator[Evening]:
    with short_folder() as folder:
        yield play_evening(folder, Plot(seed, seconds=13.0), storm)


def test_every_kind_of_process_was_killed_under_load(evening: Evening) -> None:
    killed = {process.split("-")[0] for _, process in evening.notes.kills}
    assert killed == set(KILLS)
    assert {process for process, _ in evening.deaths} >= {name for _, name in evening.notes.kills}
    assert len(evening.claims) > 500
    assert evening.load.open_repeats.total() > 0


def test_no_ticket_is_issued_twice_by_killed_gateways(evening: Evening) -> None:
    """F1: the second user of a record would get ALREADY_OPENED; see also test_access_kills."""
    assert evening.load.opens["ALREADY_OPENED"] == 0
    checkers.check_claimed_once(evening.claims)
    checkers.check_one_pod_a_file(evening.claims)


def test_killed_gateways_lose_at_most_what_they_had_reserved(evening: Evening) -> None:
    """F1: and all of it is in the residual report."""
    crashes = sum(process.startswith("access") for process, _ in evening.deaths)
    checkers.check_residue(evening.audit["residue_packets"], crashes, WINDOW_PACKETS)
    reserved = sum(row["packets_reserved"] for row in evening.audit["slots"])
    shakes = evening.load.shakes
    late = shakes["DEADLINE_EXCEEDED"] + shakes["LOST"]  # issued, perhaps, to nobody who waited
    won, residue = shakes["PACKET"], evening.audit["residue_packets"]
    assert won <= reserved <= won + residue + late


def test_no_acknowledged_open_is_lost_when_owners_are_killed(evening: Evening) -> None:
    """F2, F3: answers were lost and asked for again; every promise is in the log, once."""
    assert len(evening.acknowledged) > 500
    checkers.check_promises_kept(evening.acknowledged, evening.claims)
    assert evening.load.opens["UNRESOLVED"] == 0


def test_killed_settle_processes_credit_exactly_what_was_opened(evening: Evening) -> None:
    """F5, R21: the log is the queue, which its readers take up again where they died."""
    checkers.check_settled_once(evening.claims, evening.transfers)
    assert evening.audit["quarantined_fen"] == 0


def test_an_owner_stopped_past_its_lease_comes_back_as_a_stranger(evening: Evening) -> None:
    """F7: its shards had other owners with later epochs while it was stopped."""
    facts = evening.notes.facts
    assert facts["before"]
    for shard, (_, epoch) in facts["before"].items():
        owner, later = facts["after"][shard]
        assert owner != PAUSED
        assert later > epoch
    assert facts["continued"], "the continued process must stop owning, not die"


def test_the_money_of_the_stormy_evening_adds_up(evening: Evening) -> None:
    audit = evening.audit
    assert audit["equations"] == "hold"
    assert audit["credited_fen"] == audit["opened_fen"] == sum(c.amount_fen for c in evening.claims)
    assert (audit["paid_twice"], audit["claims_lost"], audit["pending_fen"]) == (0, 0, 0)
