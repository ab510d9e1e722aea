"""F2, F3, F5, F8, F10 on a whole run: TiKV ×3 and etcd ×3 break under load, and so does an owner.

One evening is shared by all tests here; stormy.py has what breaks and how it is judged.
"""

import asyncio
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import httpx
import pytest

from tests.processes.rainy import Evening, Plot, Stage, short_folder
from tests.servers import binaries
from tests.servers.etcd import EtcdCluster
from tests.servers.tikv import TikvCluster
from tests.stalls import Stalls, undisturbed
from tests.stores import stormy
from tests.stores.stormy import (
    Fault,
    test_credited_is_what_was_opened_and_the_equations_hold,
    test_no_acknowledged_open_is_lost_or_doubled,
    test_one_writer_a_position_rising_epochs_and_readers_that_see_a_prefix,
)

__all__ = [  # tests that every evening must pass
    "test_credited_is_what_was_opened_and_the_equations_hold",
    "test_no_acknowledged_open_is_lost_or_doubled",
    "test_one_writer_a_position_rising_epochs_and_readers_that_see_a_prefix",
]

ETCD_REQUESTS = re.compile(
    r'hongbao_etcd_requests_total\{kind="(?P<kind>\w+)",purpose="(?P<purpose>\w+)"\} (?P<count>\S+)'
)
STARTED_S_MAX = 60.0  # before and behind the evening, processes live too
BACK_S_MAX = 5.0
WRITES_PER_S_MAX = 3.0  # of each of two processes: a quota a second, leases, acks

pytestmark = [
    pytest.mark.slow,
    pytest.mark.processes,
    pytest.mark.xdist_group("faults"),
    pytest.mark.skipif(binaries.why_not() is not None, reason=binaries.why_not() or ""),
]


class Story(stormy.Story):
    """Breaks all of TiKV, PD, etcd and an owner; asks what was written to etcd meanwhile."""

    def __init__(self, tikv: TikvCluster, etcd: EtcdCluster) -> None:
        super().__init__(tikv, etcd)
        self.etcd_requests: Counter[tuple[str, str, str]] = Counter()

    def plan_faults(self, stage: Stage) -> Sequence[Fault]:
        return (
            Fault(0, 0.15, "tikv leader", self.kill_tikv),
            Fault(0, 0.6, "etcd leader", self.kill_etcd),
            Fault(1, 0.12, "pd", self.restart_pd),
            Fault(1, 0.35, "split", self.split),
            Fault(1, 0.45, "compaction", self.compact),
            Fault(1, 0.55, "owner", self.kill_owner),
        )

    async def play(self, stage: Stage) -> None:
        await super().play(stage)
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


@pytest.fixture(scope="module")
def played(seed: int, stalls: Stalls) -> Iterator[tuple[Evening, Story]]:
    def late(played: tuple[Evening, Story]) -> bool:
        return bool(too_late(played, stalls))

    with undisturbed(stalls, partial(play, seed), late) as played:
        yield played


def too_late(played: tuple[Evening, Story], stalls: Stalls) -> list[str]:
    """Return the faults behind which the service was not back in time."""
    back = stormy.measure_back(*played, stalls)
    return [name for name, (silence_s, _) in back.items() if silence_s > BACK_S_MAX]


@contextmanager
def play(seed: int) -> Iterator[tuple[Evening, Story]]:
    with (
        short_folder() as folder,
        TikvCluster(folder / "tikv", stores=3) as tikv,
        EtcdCluster(folder / "etcd", members=3) as etcd,
    ):
        story = Story(tikv, etcd)
        stores = {"tikv": {"pd": tikv.pd_endpoints}, "etcd": {"endpoints": etcd.endpoints}}
        plot = Plot(seed, seconds=30.0, rate=300.0, lease_ttl_s=2.0, stores=stores)
        yield stormy.play_story(folder, plot, story), story


def test_everything_broke_under_load(played: tuple[Evening, Story]) -> None:
    stormy.check_broke_under_load(*played, faults=6, claims=500)


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


def test_service_is_back_within_five_seconds_of_each_fault(
    played: tuple[Evening, Story], stalls: Stalls
) -> None:
    """Of a second evening, if the first was late: a process that starved may cost a second."""
    assert too_late(played, stalls) == []
