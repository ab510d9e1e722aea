"""F2, F3, F5, F8, F10 on a whole run: TiKV ×3 and etcd ×3 break under load, and so does an owner.

One evening is shared by all tests here. What clients were promised, the log, the ledger and the
recorded history of leases are judged by the checkers of the embedded storms.
"""

import asyncio
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator

import httpx
import pytest
from hongbao.cli.demo_faults import find_silence_s
from hongbao.cli.stores import open_stores
from hongbao.shards.block import Block, ShardKey
from hongbao.shards.replay import read_blocks

from tests.processes import checkers
from tests.processes.rainy import Evening, Plot, Stage, play_evening, short_folder
from tests.servers import binaries
from tests.servers.etcd import EtcdCluster
from tests.servers.tikv import OUR_KEYS, TikvCluster
from tests.stores.history import Recorded, Recorder, check_history

ETCD_REQUESTS = re.compile(
    r'hongbao_etcd_requests_total\{kind="(?P<kind>\w+)",purpose="(?P<purpose>\w+)"\} (?P<count>\S+)'
)
STARTED_S_MAX = 60.0  # before and behind the evening, processes live too
WRITES_PER_S_MAX = 3.0  # of each of two processes: a quota a second, leases, acks
DOWN_S = 2.0
PD_DOWN_S = 0.5  # the test store asks PD for a timestamp at each write; TiKV's raw API does not
BACK_S_MAX = 5.0
LOG_BLOCKS_MAX = 1 << 20

pytestmark = [
    pytest.mark.slow,
    pytest.mark.processes,
    pytest.mark.timeout(240),
    pytest.mark.xdist_group("stores"),
    pytest.mark.skipif(binaries.why_not() is not None, reason=binaries.why_not() or ""),
]


class Story:
    """Breaks one store after another, and records leases and logs meanwhile."""

    def __init__(self, tikv: TikvCluster, etcd: EtcdCluster) -> None:
        self._tikv = tikv
        self._etcd = etcd
        self.recorded = Recorded()
        self.logs: dict[int, list[Block]] = {}
        self.broke_at_ms: dict[str, int] = {}
        self.etcd_requests: Counter[tuple[str, str, str]] = Counter()

    async def play(self, stage: Stage) -> None:
        stores, shards = stage.up.stores, range(stage.plot.claims_shards)
        recorder = Recorder(stores.log_store, stores.coordination, "claims", shards)
        self.recorded = recorder.recorded
        await stage.until_drained.enter_async_context(recorder.recording())
        faults: list[tuple[int, float, str, Callable[[], Awaitable[None]]]] = [
            (0, 0.15, "tikv leader", self._kill_tikv),
            (0, 0.6, "etcd leader", self._kill_etcd),
            (1, 0.12, "pd", self._restart_pd),
            (1, 0.35, "split", self._split),
            (1, 0.45, "compaction", self._compact),
            (1, 0.55, "owner", lambda: self._kill_owner(stage)),
        ]
        for slot, share, name, fault in faults:
            await stage.at(slot, share)
            self.broke_at_ms[name] = stage.up.clock.wall_ms()
            await fault()
        await stage.at(1, 0.95)
        await asyncio.to_thread(self._scrape, stage)

    def _scrape(self, stage: Stage) -> None:
        """Read what every living process says that it asked etcd to write."""
        for spec in [*stage.up.of(role="redeem"), *stage.up.of(role="access")]:
            url = f"http://127.0.0.1:{spec.ports['metrics']}/metrics"
            try:
                text = httpx.get(url, trust_env=False).text
            except httpx.HTTPError:  # the owner that was killed is not back yet
                continue
            for line in text.splitlines():
                if found := ETCD_REQUESTS.fullmatch(line):
                    self.etcd_requests[spec.role, found["kind"], found["purpose"]] += int(
                        float(found["count"])
                    )

    async def _kill_tikv(self) -> None:
        index = await asyncio.to_thread(self._tikv.leader_of, OUR_KEYS)
        await asyncio.to_thread(self._tikv.kill_store, index)
        await asyncio.sleep(DOWN_S)
        await asyncio.to_thread(self._tikv.start_store, index)

    async def _kill_etcd(self) -> None:
        index = await asyncio.to_thread(self._etcd.leader)
        await asyncio.to_thread(self._etcd.kill, index)
        await asyncio.sleep(DOWN_S)
        await asyncio.to_thread(self._etcd.start, index)

    async def _restart_pd(self) -> None:
        await asyncio.to_thread(self._tikv.kill_pd)
        await asyncio.sleep(PD_DOWN_S)
        await asyncio.to_thread(self._tikv.start_pd)

    async def _split(self) -> None:
        await asyncio.to_thread(self._tikv.split, OUR_KEYS)

    async def _compact(self) -> None:
        await asyncio.to_thread(self._etcd.compact)

    async def _kill_owner(self, stage: Stage) -> None:
        """Kill the owner of the shard with the longest log: that one is in use."""
        sizes = {shard: len(blocks) for shard, blocks in self.recorded.reads.items()}
        owner, _ = (await stage.owners())[max(sizes, key=lambda shard: sizes[shard])]
        stage.kill(owner)


@pytest.fixture(scope="module")
def played(seed: int) -> Iterator[tuple[Evening, Story]]:
    with (
        short_folder() as folder,
        TikvCluster(folder / "tikv", stores=3) as tikv,
        EtcdCluster(folder / "etcd", members=3) as etcd,
    ):
        story = Story(tikv, etcd)
        stores = {"tikv": {"pd": tikv.pd_endpoints}, "etcd": {"endpoints": etcd.endpoints}}
        plot = Plot(seed, seconds=30.0, rate=300.0, lease_ttl_s=2.0, stores=stores)
        evening = play_evening(folder, plot, story.play)
        story.logs = asyncio.run(read_logs(evening))
        yield evening, story


async def read_logs(evening: Evening) -> dict[int, list[Block]]:
    async with open_stores(evening.run.path) as opened:
        return {
            shard: await read_blocks(
                opened.log_store, ShardKey("claims", shard), 0, LOG_BLOCKS_MAX, limit=LOG_BLOCKS_MAX
            )
            for shard in range(evening.plot.claims_shards)
        }


def test_everything_broke_under_load(played: tuple[Evening, Story]) -> None:
    evening, story = played
    assert len(story.broke_at_ms) == 6
    assert len(evening.claims) > 500
    assert {name for name, _ in evening.deaths} == {name for _, name in evening.notes.kills}


def test_no_acknowledged_open_is_lost_or_doubled(played: tuple[Evening, Story]) -> None:
    """F2, F3, F10."""
    evening, _ = played
    checkers.check_claimed_once(evening.claims)
    checkers.check_promises_kept(evening.acknowledged, evening.claims)
    checkers.check_one_pod_a_file(evening.claims)
    assert evening.load.opens["ALREADY_OPENED"] == 0
    assert evening.load.opens["UNRESOLVED"] == 0


def test_credited_is_what_was_opened_and_the_equations_hold(played: tuple[Evening, Story]) -> None:
    """F5."""
    evening, _ = played
    checkers.check_settled_once(evening.claims, evening.transfers)
    audit = evening.audit
    assert audit["equations"] == "hold"
    assert (audit["paid_twice"], audit["claims_lost"], audit["pending_fen"]) == (0, 0, 0)
    assert audit["quarantined_fen"] == 0


def test_one_writer_a_position_rising_epochs_and_readers_that_see_a_prefix(
    played: tuple[Evening, Story],
) -> None:
    """F7, F8: the recorded history of leases and logs."""
    _, story = played
    assert check_history("claims", story.recorded, story.logs) == []
    assert all(story.recorded.reads.values())


def test_no_shake_and_no_open_writes_to_etcd(played: tuple[Evening, Story]) -> None:
    """What is written follows the clock and the operator: leases, quotas, acks."""
    evening, story = played
    print(f"asked of etcd: {dict(story.etcd_requests)}")
    writes = Counter[str]()
    for (role, kind, _), count in story.etcd_requests.items():
        writes[role] += count if kind != "keepalive" else 0
    assert {purpose for _, _, purpose in story.etcd_requests} <= {"lease", "campaigns", "acks"}
    seconds = evening.plot.seconds + STARTED_S_MAX
    assert 0 < writes["redeem"] < seconds * 2 * WRITES_PER_S_MAX
    assert 0 < writes["access"] < seconds * 2 * WRITES_PER_S_MAX


def slot_end_ms(evening: Evening, at_ms: int) -> int:
    slot = evening.timeline.slot_at(at_ms)
    assert slot is not None
    return slot.ends_at_ms


def test_service_is_back_within_five_seconds_of_each_fault(played: tuple[Evening, Story]) -> None:
    evening, story = played
    back_s = {
        name: find_silence_s(
            evening.acknowledged, evening.prepared.manifests, at_ms, slot_end_ms(evening, at_ms)
        )
        for name, at_ms in story.broke_at_ms.items()
    }
    print(f"service back after, s: {back_s}")
    assert [name for name, one in back_s.items() if one is None or one > BACK_S_MAX] == []
