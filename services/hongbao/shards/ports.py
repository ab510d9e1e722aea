"""Owns the two store ports that all mutable state rests on; refuses to know any store.

`LogStore` is what TiKV's raw API gives: create-if-absent, idempotent puts, ordered scans.
`Coordination` is what etcd gives: small values with revisions, leases and watches.
Every adapter passes the contract suites in tests/contracts.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

KEY_BYTES_MAX = 256
VALUE_BYTES_MAX = 1 << 20


class LogStore(Protocol):
    """Keeps bytes by key, in key order, durably."""

    async def create(self, key: bytes, value: bytes) -> bool:
        """Create `key` only if it is absent; True means created and durable.

        Raises Ambiguous when the outcome is unknown (read the key back), Transient when it
        surely did not happen. Tried again inside only where a try surely did nothing.
        """

    async def put_many(self, items: Sequence[tuple[bytes, bytes]]) -> None:
        """Write derived keys: idempotent, in the given order, durable on return.

        May be applied twice or, after an error, in part (a prefix in the given order); the
        caller repeats the same call with the same bytes. A try whose answer was lost may still
        be applied later, behind other puts of the same key: what is overwritten must bear that.
        """

    async def get(self, key: bytes) -> bytes | None: ...

    async def scan(self, start: bytes, end: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        """Return at most `limit` pairs with start ≤ key < end in key order.

        No key is missing that was there before one that is returned: a log has no holes.
        """


@runtime_checkable
class JointLogStore(LogStore, Protocol):
    """Is a LogStore with transactions: it writes a block and what is derived from it at once."""

    async def create_with(
        self, key: bytes, value: bytes, puts: Sequence[tuple[bytes, bytes]]
    ) -> bool:
        """Create as `create` does; the puts are visible and durable if and only if the key is."""


@dataclass(frozen=True, slots=True)
class Versioned:
    """Is a coordination value with the revision that wrote it (0: the key is absent)."""

    key: str
    value: bytes
    revision: int


@dataclass(frozen=True, slots=True)
class Lease:
    """Is a granted lease: `epoch` rises with every grant of the same name, never repeats."""

    name: str
    holder: str
    epoch: int
    ttl_s: float


class Coordination(Protocol):
    """Keeps small shared facts: leases, members, assignments, switches, quotas."""

    async def read(self, key: str) -> Versioned: ...

    async def read_prefix(self, prefix: str) -> list[Versioned]: ...

    async def compare_and_put(self, key: str, value: bytes, *, revision: int) -> Versioned | None:
        """Write if the key's revision still is `revision` (0: absent); None when it is not.

        Raises Ambiguous when the outcome is unknown.
        """

    async def put(self, key: str, value: bytes) -> Versioned: ...

    async def delete(self, key: str) -> None: ...

    def watch(self, prefix: str, *, after_revision: int) -> AsyncIterator[Versioned]:
        """Yield every later change once and in order; a deletion has an empty value.

        Of changes that lie far back, a store may keep only the last one of each key, and none of
        a key that came and went, so any revision ever seen is good to go on from. It never ends
        by itself.
        """

    async def acquire(self, name: str, holder: str, *, ttl_s: float, value: bytes) -> Lease | None:
        """Take the lease if nobody holds it; None while someone else does.

        `value` (address, zone: JSON) is readable at `lease/<name>` while the lease lives and
        goes with it. A holder that asks again gets a new epoch. A store may let a lease live
        longer than `ttl_s`, never shorter: etcd counts whole seconds and grants no less than two.
        """

    async def renew(self, lease: Lease) -> bool:
        """Extend the lease; False when it is lost. Safe to repeat."""

    async def release(self, lease: Lease) -> None: ...


class Clock(Protocol):
    """Tells the time: wall time is for people, leases use only the monotonic clock (F9)."""

    def wall_ms(self) -> int: ...

    def monotonic_s(self) -> float: ...
