"""Plays evenings on real TiKV and etcd that break one after another, and judges what is left.

What clients were promised, the log, the ledger and the recorded history of leases are judged by
the checkers of the embedded storms. A module of tests says what breaks, gives the evening as its
fixture `played`, and imports the tests of here that every evening must pass.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hongbao.cli.demo_faults import WATCHED_MS, find_silence_s
from hongbao.cli.stores import open_stores
from hongbao.shards.block import Block, ShardKey
from hongbao.shards.replay import read_blocks

from tests.processes import checkers
from tests.processes.rainy import Evening, Plot, Stage, play_evening
from tests.servers.etcd import EtcdCluster
from tests.servers.tikv import OUR_KEYS, TikvCluster
from tests.stalls import Stalls
from tests.stores.appends import Answered
from tests.stores.history import Recorded, Recorder, check_history
from tests.waiting import until

DOWN_S = 2.0
PD_DOWN_S = 0.5  # the test store asks PD for a timestamp at each write; TiKV's raw API does not
LOG_BLOCKS_MAX = 1 << 20


@dataclass(frozen=True)
class Fault:
    """Is what breaks when a share of a slot has passed."""

    slot: int
    share: float
    name: str
    strike: Callable[[Stage], Awaitable[None]]


class Story:
    """Breaks one thing after another, and records leases and logs meanwhile."""

    def __init__(self, tikv: TikvCluster, etcd: EtcdCluster) -> None:
        self._tikv = tikv
        self._etcd = etcd
        self.recorded = Recorded()
        self.logs: dict[int, list[Block]] = {}
        self.broke_at_ms: dict[str, int] = {}

    def plan_faults(self, stage: Stage) -> Sequence[Fault]:
        """Return what breaks, in order of time."""
        raise NotImplementedError

    async def play(self, stage: Stage) -> None:
        stores, shards = stage.up.stores, range(stage.plot.claims_shards)
        recorder = Recorder(stores.log_store, stores.coordination, "claims", shards)
        self.recorded = recorder.recorded
        await stage.until_drained.enter_async_context(recorder.recording())
        for fault in self.plan_faults(stage):
            await stage.at(fault.slot, fault.share)
            self.broke_at_ms[fault.name] = stage.up.clock.wall_ms()
            print(f"{fault.name}: slot {fault.slot}, share {fault.share:.3f}")
            await fault.strike(stage)

    async def kill_tikv(self, _: Stage) -> None:
        """Kill the store that leads our logs, and start it again."""
        index = await asyncio.to_thread(self._tikv.leader_of, OUR_KEYS)
        await asyncio.to_thread(self._tikv.kill_store, index)
        await asyncio.sleep(DOWN_S)
        await asyncio.to_thread(self._tikv.start_store, index)

    async def kill_etcd(self, _: Stage) -> None:
        index = await asyncio.to_thread(self._etcd.leader)
        await asyncio.to_thread(self._etcd.kill, index)
        await asyncio.sleep(DOWN_S)
        await asyncio.to_thread(self._etcd.start, index)

    async def restart_pd(self, _: Stage) -> None:
        await asyncio.to_thread(self._tikv.kill_pd)
        await asyncio.sleep(PD_DOWN_S)
        await asyncio.to_thread(self._tikv.start_pd)

    async def split(self, _: Stage) -> None:
        await asyncio.to_thread(self._tikv.split, OUR_KEYS)

    async def compact(self, _: Stage) -> None:
        await asyncio.to_thread(self._etcd.compact)

    async def kill_owner(self, stage: Stage) -> None:
        """Kill the owner of the shard with the longest log: that one is in use."""
        sizes = {shard: len(blocks) for shard, blocks in self.recorded.reads.items()}
        longest = max(sizes, key=lambda shard: sizes[shard])
        owners: dict[int, tuple[str, int]] = {}

        async def is_owned() -> bool:  # it may move just now
            owners.update(await stage.owners())
            return longest in owners

        await until(is_owned, f"shard {longest} has an owner")
        stage.kill(owners[longest][0])


Played = tuple[Evening, Story]


def play_story(folder: Path, plot: Plot, story: Story) -> Evening:
    """Play the evening and read the logs that it left; blocks until it is over."""
    evening = play_evening(folder, plot, story.play)
    story.logs = asyncio.run(_read_logs(evening))
    return evening


async def _read_logs(evening: Evening) -> dict[int, list[Block]]:
    async with open_stores(evening.run.path) as opened:
        return {
            shard: await read_blocks(
                Answered(opened.log_store),
                ShardKey("claims", shard),
                0,
                LOG_BLOCKS_MAX,
                limit=LOG_BLOCKS_MAX,
            )
            for shard in range(evening.plot.claims_shards)
        }


def check_broke_under_load(evening: Evening, story: Story, *, faults: int, claims: int) -> None:
    """Tell whether the evening is worth judging: all broke, and only what we killed died."""
    assert len(story.broke_at_ms) == faults
    assert len(evening.claims) > claims
    assert {name for name, _ in evening.deaths} == {name for _, name in evening.notes.kills}


def test_no_acknowledged_open_is_lost_or_doubled(played: Played) -> None:
    """F2, F3, F10."""
    evening, _ = played
    checkers.check_claimed_once(evening.claims)
    checkers.check_promises_kept(evening.acknowledged, evening.claims)
    checkers.check_one_pod_a_file(evening.claims)
    assert evening.load.opens["ALREADY_OPENED"] == 0
    assert evening.load.opens["UNRESOLVED"] == 0


def test_credited_is_what_was_opened_and_the_equations_hold(played: Played) -> None:
    """F5, R21: the log is the queue, kept by three stores that break."""
    evening, _ = played
    checkers.check_settled_once(evening.claims, evening.transfers)
    audit = evening.audit
    assert audit["equations"] == "hold"
    assert (audit["paid_twice"], audit["claims_lost"], audit["pending_fen"]) == (0, 0, 0)
    assert audit["quarantined_fen"] == 0


def test_one_writer_a_position_rising_epochs_and_readers_that_see_a_prefix(
    played: Played,
) -> None:
    """F7, F8: the recorded history of leases and logs."""
    _, story = played
    assert check_history("claims", story.recorded, story.logs) == []
    assert all(story.recorded.reads.values())


def measure_back(evening: Evening, story: Story, stalls: Stalls) -> dict[str, tuple[float, float]]:
    """Return for how long opens were not acknowledged after each fault, and what was watched.

    The worst shard of claims counts; one that did not come back was silent all that time. A time in
    which the machine stood still is no silence.
    """
    measured = {}
    for name, at_ms in story.broke_at_ms.items():
        until_ms = _slot_end_ms(evening, at_ms)
        manifests = evening.prepared.manifests
        silence_s = find_silence_s(evening.acknowledged, manifests, at_ms, until_ms)
        if silence_s is None:  # nobody was opening anything: a machine that starved
            silence_s = (until_ms - at_ms) / 1000
        watched_ms = min(WATCHED_MS, until_ms - at_ms)
        stalled_s = stalls.within_ms(at_ms, at_ms + watched_ms) / 1000
        measured[name] = silence_s - stalled_s, watched_ms / 1000 - stalled_s
    print(f"service back after, s, of what was watched: {measured}")
    return measured


def _slot_end_ms(evening: Evening, at_ms: int) -> int:
    slot = evening.timeline.slot_at(at_ms)
    assert slot is not None
    return slot.ends_at_ms
