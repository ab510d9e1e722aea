"""The holder's side of a lease: it always stops first (F7, F9)."""

import asyncio

from hongbao.adapters.memory import MemoryStore
from hongbao.domain.errors import Ambiguous
from hongbao.shards.lease import MARGIN_SHARE, HeldLease
from hongbao.shards.ports import Lease

from tests.waiting import LIMIT_S

TTL_S = 10.0


class SlowStore(MemoryStore):
    """Takes two seconds on its way and two on the way back, on the test's own clock."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.answers = True
        super().__init__(lambda: self.now_s)

    async def renew(self, lease: Lease) -> bool:
        self.now_s += 2.0
        if not self.answers:
            raise Ambiguous("no answer")
        held = await super().renew(lease)
        self.now_s += 2.0
        return held


async def hold(store: SlowStore, holder: str = "a", ttl_s: float = TTL_S) -> HeldLease | None:
    return await HeldLease.acquire(
        store, "claims/1", holder, ttl_s=ttl_s, value=b"{}", monotonic_s=lambda: store.now_s
    )


async def test_a_lease_is_trusted_for_its_ttl_less_the_margin() -> None:
    store = SlowStore()
    held = await hold(store)
    assert held is not None
    store.now_s += TTL_S * (1 - MARGIN_SHARE) - 0.1
    assert held.valid()
    store.now_s += 0.2
    assert not held.valid()
    assert await hold(store, "b") is None  # the store still waits


async def test_a_renewal_counts_from_when_it_was_sent() -> None:
    store = SlowStore()
    held = await hold(store)
    assert held is not None
    sent_at_s = store.now_s
    assert await held.renew()
    store.now_s = sent_at_s + TTL_S * (1 - MARGIN_SHARE) - 0.1
    assert held.valid()
    store.now_s += 0.2
    assert not held.valid()


async def test_whoever_gets_the_lease_next_finds_the_holder_stopped() -> None:
    store = SlowStore()
    held = await hold(store)
    assert held is not None
    while (following := await hold(store, "b")) is None:
        store.now_s += 0.05
    assert not held.valid()
    assert following.lease.epoch > held.lease.epoch
    assert not await held.renew()
    assert not held.valid()


async def test_a_release_ends_trust_even_when_the_store_does_not_answer() -> None:
    store = SlowStore()
    held = await hold(store)
    assert held is not None
    await held.release()
    assert not held.valid()
    assert await hold(store, "b") is not None


async def test_keep_ends_when_renewals_fail_for_too_long() -> None:
    store = SlowStore()
    held = await hold(store, ttl_s=0.2)
    assert held is not None
    store.answers = False
    await asyncio.wait_for(held.keep(), LIMIT_S)
    assert not held.valid()
