"""A watch that breaks is taken up again; measured opens become the quota (F8, R18)."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hongbao.adapters.memory import MemoryStore
from hongbao.domain.errors import Transient
from hongbao.domain.ids import CampaignId
from hongbao.redeem.barrier import BlockBarrier
from hongbao.redeem.facts import Facts
from hongbao.redeem.flights import Flights
from hongbao.redeem.limits import RedeemLimits
from hongbao.redeem.quota import QuotaMeter, merge_quota, next_capacity
from hongbao.redeem.service import OpenCounts
from hongbao.redeem.watch import FactsWatch
from hongbao.shards.ports import Versioned
from hypothesis import given
from structlog.testing import capture_logs

from tests.redeem.world import make_world
from tests.waiting import until

CAMPAIGN = CampaignId("tiny")
LIMITS = RedeemLimits(watch_retry_s=0.001)
PAUSE = b'{"value": true, "by": "a", "why": "b", "set_at_ms": 0, "expires_at_ms": null}'


class BreakingStore(MemoryStore):
    """Breaks each watch after a number of events, and some reads, as a lost connection would."""

    def __init__(self, events: int, error: Exception) -> None:
        super().__init__()
        self.events = events
        self.error = error
        self.failing = False

    async def read_prefix(self, prefix: str) -> list[Versioned]:
        if self.failing:
            raise Transient("no answer")
        return await super().read_prefix(prefix)

    async def watch(self, prefix: str, *, after_revision: int) -> AsyncIterator[Versioned]:
        left = self.events
        async for fact in super().watch(prefix, after_revision=after_revision):
            yield fact
            left -= 1
            if left <= 0:
                raise self.error


async def never(_plane: str, _shard: int, _operation: bytes) -> bytes:
    raise AssertionError("without manifests there is no shard to ask")


def watch_over(store: MemoryStore) -> tuple[Facts, FactsWatch]:
    facts = Facts(CAMPAIGN, [], LIMITS)
    watch = FactsWatch(
        store,
        facts,
        Flights(),
        BlockBarrier(never, "claims", [], 0.001),
        campaign=CAMPAIGN,
        process="redeem-a-0",
        retry_s=0.001,
    )
    return facts, watch


@pytest.mark.parametrize("error", [Transient("connection lost"), ValueError("a bug")])
async def test_every_change_arrives_over_a_watch_that_keeps_breaking(error: Exception) -> None:
    """F8: a watch never goes silent."""
    store = BreakingStore(1, error)
    facts, watch = watch_over(store)
    await watch.load()
    follow = asyncio.create_task(watch.follow())
    for key_id in range(1, 20):
        await store.put("campaigns/tiny/keys", b'{"deny": [%d], "allow": null}' % key_id)
        await until(lambda key_id=key_id: key_id in facts.key_lists.deny, f"{key_id} is denied")
        assert facts.key_lists.deny == {key_id}
    follow.cancel()


async def test_the_last_known_good_holds_while_nobody_answers_and_is_caught_up_after() -> None:
    """F8: a switch that was deleted meanwhile is off afterwards."""
    store = BreakingStore(1, Transient("connection lost"))
    facts, watch = watch_over(store)
    await store.put("switches/open_pause", PAUSE)
    await store.put("campaigns/tiny/keys", b'{"deny": [1], "allow": null}')
    await watch.load()
    follow = asyncio.create_task(watch.follow())
    await asyncio.sleep(0.01)
    store.failing = True
    await store.put("switches/issue_speed", PAUSE.replace(b"true", b"1"))  # breaks the watch
    await store.put("campaigns/tiny/keys", b'{"deny": [2], "allow": null}')
    await asyncio.sleep(0.01)
    await store.delete("switches/open_pause")
    assert facts.switches.value("open_pause", 0) is True
    store.failing = False
    await until(lambda: 2 in facts.key_lists.deny, "the keys are caught up")
    await until(lambda: facts.switches.value("open_pause", 0) is False, "the switch is off")
    follow.cancel()


def test_capacity_grows_only_under_use_and_falls_when_opens_are_slow_or_fail() -> None:
    """R18: no more packets are issued than opens were proved."""

    def after(capacity: float, opens_per_s: float, open_ms: float, failures: int) -> float:
        return next_capacity(
            capacity, opens_per_s=opens_per_s, open_ms=open_ms, failures=failures, limits=LIMITS
        )

    assert after(5000, 0, 0, 0) == 5000
    assert after(5000, 3000, 5, 0) == 5000
    assert after(5000, 4000, 5, 0) == 6250
    assert after(5000, 4500, 300, 0) == 4500
    assert after(5000, 9000, 300, 0) == 5000
    assert after(5000, 0, 0, 1) == 4000
    assert after(200, 0, 0, 1) == LIMITS.opens_per_s_lowest
    assert after(20_000, 19_000, 5, 0) == LIMITS.opens_per_s_highest


@given(st.floats(200, 20_000), st.floats(0, 1e6), st.floats(0, 1e6), st.integers(0, 1000))
def test_capacity_stays_within_its_bounds(
    capacity: float, opens_per_s: float, open_ms: float, failures: int
) -> None:
    after = next_capacity(
        capacity, opens_per_s=opens_per_s, open_ms=open_ms, failures=failures, limits=LIMITS
    )
    assert LIMITS.opens_per_s_lowest <= after <= LIMITS.opens_per_s_highest


def test_the_quota_is_the_sum_of_the_processes_that_still_measure() -> None:
    """R18: a process that is gone opens nothing."""
    document = merge_quota(b"", "redeem-a-0", 5000, 1000, 10_000)
    document = merge_quota(document, "redeem-b-0", 3000.4, 9000, 10_000)
    assert json.loads(document)["opens_per_s"] == 8000
    document = merge_quota(document, "redeem-b-0", 3500, 11_000, 10_000)
    assert json.loads(document) == {
        "opens_per_s": 3500,
        "processes": {"redeem-b-0": {"at_ms": 11_000, "opens_per_s": 3500}},
    }


@pytest.mark.parametrize("broken", [b"", b"{", b"[]", b'{"processes": {"x": 1}}'])
def test_a_broken_quota_is_measured_anew(broken: bytes) -> None:
    assert json.loads(merge_quota(broken, "redeem-a-0", 5, 0, 1))["opens_per_s"] == 5


@pytest.mark.parametrize(
    "odd",
    [
        {"at_ms": 1},
        {"opens_per_s": 7},
        {"opens_per_s": "7", "at_ms": 1},
        {"opens_per_s": True, "at_ms": 1},
        {"opens_per_s": -7, "at_ms": 1},
        {"opens_per_s": 7, "at_ms": None},
        7,
        None,
    ],
)
def test_an_odd_entry_of_the_quota_is_dropped_and_the_others_stay(odd: object) -> None:
    good = {"opens_per_s": 700, "at_ms": 1}
    document = json.dumps({"processes": {"odd": odd, "redeem-b-0": good}}).encode()
    merged = json.loads(merge_quota(document, "redeem-a-0", 5, 1, 10_000))
    assert sorted(merged["processes"]) == ["redeem-a-0", "redeem-b-0"]
    assert merged["opens_per_s"] == 705


class CollidingStore(MemoryStore):
    """Lets another process write just before the first compare-and-put."""

    collided = False

    async def compare_and_put(self, key: str, value: bytes, *, revision: int) -> Versioned | None:
        if not self.collided:
            self.collided = True
            await self.put(key, merge_quota(b"", "redeem-b-0", 700, 0, 10_000))
        return await super().compare_and_put(key, value, revision=revision)


async def test_two_processes_that_publish_at_once_both_stay_in_the_quota() -> None:
    store, counts, now_s = CollidingStore(), OpenCounts(), [0.0]
    meter = QuotaMeter(
        store,
        counts,
        campaign=CAMPAIGN,
        process="redeem-a-0",
        wall_ms=lambda: 1,
        monotonic_s=lambda: now_s[0],
        limits=LIMITS,
    )
    counts.opened, counts.open_s, now_s[0] = 9000, 9.0, 2.0
    await meter.publish()
    shape = json.loads((await store.read("campaigns/tiny/quota")).value)
    assert shape["processes"]["redeem-a-0"]["opens_per_s"] == 6250
    assert shape["opens_per_s"] == 6950


async def test_a_bug_in_one_publication_ends_neither_the_quota_nor_the_drain(
    tmp_path: Path,
) -> None:
    world = await make_world(tmp_path, RedeemLimits(quota_period_s=0.001))
    whole, failed = world.store.compare_and_put, list[str]()

    async def compare_and_put(key: str, value: bytes, *, revision: int) -> Versioned | None:
        if len(failed) < 3:
            failed.append(key)
            raise ValueError("a failure that nobody foresaw")
        return await whole(key, value, revision=revision)

    world.store.compare_and_put = compare_and_put  # type: ignore[method-assign]
    before = await world.store.read("campaigns/tiny/quota")

    async def published() -> bool:
        quota = await world.store.read("campaigns/tiny/quota")
        return quota.revision > before.revision

    await until(published, "the quota is published again")
    assert failed == 3 * ["campaigns/tiny/quota"]
    await world.close()


async def test_an_ack_that_fails_as_nobody_foresaw_is_repeated_and_ends_no_watch(
    tmp_path: Path,
) -> None:
    world = await make_world(tmp_path)
    whole, failures = world.store.put, [ValueError("one"), ValueError("two")]

    async def put(key: str, value: bytes) -> Versioned:
        if key.startswith("acks/") and failures:
            raise failures.pop()
        return await whole(key, value)

    world.store.put = put  # type: ignore[method-assign]
    with capture_logs() as told:
        for deny in ("[1]", "[1, 2]"):
            document = f'{{"deny": {deny}, "allow": null}}'.encode()
            written = await whole("campaigns/tiny/keys", document)
            await world.acked("campaigns/tiny/keys", written.revision)
    assert [one["event"] for one in told].count("acks_broken") == 2
    await world.close()
