"""Owns the logs on TiKV's transactional API, for clusters that run it already.

A block and what is derived from it go in one transaction, committed in two phases. One-phase and
async commit stay off by the client's defaults alone: its `begin` takes nothing but `pessimistic`,
so there is no way to say so. tests/contracts/test_tikv_commits.py listens to what it really sends,
and its version is pinned. It has wheels for Python 3.11 only, no TLS, and bare exceptions.
"""

import asyncio
import importlib
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Final, TypeVar

from hongbao.adapters.memory import check_pair
from hongbao.adapters.tikv_calls import CALL_S_MAX, Turns
from hongbao.domain.errors import Ambiguous, HongbaoError, Rejected, Transient
from hongbao.shards.ports import VALUE_BYTES_MAX

MISSING: Final = (
    "TiKV's transactional API needs the extra of its client, on Python 3.11: "
    "pip install 'hongbao[tikv-txn]'; or use the raw API"
)
REPLY_BYTES_MAX: Final = 3 << 20
"""The client's transport takes 4 MiB, with the keys and what is around them."""
SAFE_PAIRS: Final = REPLY_BYTES_MAX // VALUE_BYTES_MAX
"""A page of a scan that fits whatever the values are; the next ones grow."""
PAGE_GROWTH: Final = 4
SPLIT_S_MAX: Final = 1.5
"""While a region splits, PD knows none for some keys, and the client gives up at once. So what
changes nothing is repeated for so long; a failure that comes later than this is told."""
SPLIT_PAUSE_S: Final = 0.05
PUT_KEYS_MAX: Final = 256
"""The client sends all keys of a transaction with each 16 KiB of it, so a put, which need not be
one transaction, is several. The test store keeps those keys in every lock, too: from about 500 keys
on its raft entries pass their 8 MiB."""

Pair = tuple[bytes, bytes]
T = TypeVar("T")


class TikvTxnStore:
    """Is a LogStore on TiKV that also creates a key together with others; see `TikvStore`."""

    def __init__(self, pd_endpoints: Sequence[str], *, namespace: bytes = b"") -> None:
        try:
            self._library = importlib.import_module("tikv_client.asynchronous")
        except ImportError as error:
            raise Rejected(MISSING) from error
        self._endpoints = list(pd_endpoints)
        self._namespace = namespace
        self._turns = Turns()
        self._connecting = asyncio.Lock()
        self._client: Any = None
        self._running: set[asyncio.Task[Any]] = set()
        self._closed = False

    async def create(self, key: bytes, value: bytes) -> bool:
        return await self.create_with(key, value, ())

    async def create_with(self, key: bytes, value: bytes, puts: Sequence[Pair]) -> bool:
        """Create as `create` does and, in the same commit, put derived keys."""
        for each in ((key, value), *puts):
            check_pair(*each)
        return await self._call(f"create {key!r}", self._create(key, value, puts), Ambiguous)

    async def put_many(self, items: Sequence[Pair]) -> None:
        for key, value in items:
            check_pair(key, value)
        if items:
            await self._call(f"put of {len(items)} keys", self._put(items), Ambiguous)

    async def get(self, key: bytes) -> bytes | None:
        return await self._call(f"get {key!r}", self._get(key), Transient)

    async def scan(self, start: bytes, end: bytes, limit: int) -> list[Pair]:
        what = f"scan {start!r} to {end!r}"
        return await self._call(what, self._scan(start, end, limit), Transient)

    async def close(self) -> None:
        """Wait for what is under way, so that no transaction is dropped unfinished."""
        self._closed = True
        if self._running:
            await asyncio.wait(self._running, timeout=CALL_S_MAX)
        self._client = None

    async def _call(self, what: str, work: Coroutine[Any, Any, T], unknown: type[Transient]) -> T:
        """Run a call to its end in a task of its own; stop waiting at the limit.

        The client panics when a transaction is dropped unfinished, so nothing is ever cancelled: a
        call that takes too long keeps its turn.
        """
        if self._closed:
            work.close()
            raise Transient("the store's client is closed")
        task = asyncio.ensure_future(self._in_turn(what, work, unknown))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        try:
            async with asyncio.timeout(CALL_S_MAX):
                return await asyncio.shield(task)
        except TimeoutError:
            task.add_done_callback(_ignore)
            raise unknown(f"{what}: no answer within {CALL_S_MAX} s") from None
        except asyncio.CancelledError:
            task.add_done_callback(_ignore)
            raise

    async def _in_turn(
        self, what: str, work: Coroutine[Any, Any, T], unknown: type[Transient]
    ) -> T:
        try:
            async with self._turns.turn():
                return await work
        except HongbaoError:
            work.close()
            raise
        except Exception as error:  # outermost level of a call; the client has no other types
            raise unknown(f"{what}: {error}") from error

    async def _create(self, key: bytes, value: bytes, puts: Sequence[Pair]) -> bool:
        async def write(transaction: Any) -> bool:
            if await transaction.get(self._namespace + key) is not None:
                return False
            for name, data in ((key, value), *puts):
                await transaction.put(self._namespace + name, data)
            return True

        try:
            return await self._transact(f"create {key!r}", write)
        except HongbaoError:
            raise
        except Exception as error:  # a conflict, or the answer is lost: a bare exception each
            found = await self._get(key)
            # Nothing is ever overwritten or deleted: another's value means that ours lost.
            if found is not None and found != value:
                return False
            raise Ambiguous(f"create {key!r}: {error}") from error

    async def _put(self, items: Sequence[Pair]) -> None:
        """Put in one transaction after the other, so that a prefix is visible at any moment."""
        for first in range(0, len(items), PUT_KEYS_MAX):
            await self._put_at_once(items[first : first + PUT_KEYS_MAX])

    async def _put_at_once(self, items: Sequence[Pair]) -> None:
        async def write(transaction: Any) -> bool:
            for key, value in items:
                await transaction.put(self._namespace + key, value)
            return True

        await self._transact(f"put of {len(items)} keys", write)

    async def _transact(self, what: str, write: Callable[[Any], Awaitable[bool]]) -> bool:
        """Commit what `write` does, or roll back when it gives False.

        Raises Transient when nothing was sent, bare exceptions when nobody knows.
        """

        async def prepare() -> Any:
            transaction = await (await self._connected()).begin()
            return transaction if await _prepared(transaction, write) else None

        try:
            transaction = await _over_splits(prepare)
        except Exception as error:
            raise Transient(f"{what}: {error}") from error
        if transaction is None:
            return False
        await transaction.commit()
        return True

    async def _get(self, key: bytes) -> bytes | None:
        async def read() -> bytes | None:
            found: bytes | None = await (await self._snapshot()).get(self._namespace + key)
            return found

        return await _over_splits(read)

    async def _scan(self, start: bytes, end: bytes, limit: int) -> list[Pair]:
        return await _over_splits(lambda: self._scan_once(start, end, limit))

    async def _scan_once(self, start: bytes, end: bytes, limit: int) -> list[Pair]:
        """Read one snapshot, page by page."""
        found: list[Pair] = []
        first, last = self._namespace + start, self._namespace + end
        snapshot, wanted = await self._snapshot(), SAFE_PAIRS
        while first < last and len(found) < limit:
            wanted = min(wanted, limit - len(found))
            page = await _page(snapshot, first, last, wanted)
            found += page
            if len(page) < min(wanted, SAFE_PAIRS):
                break
            first = page[-1][0] + b"\0"
            largest = max(len(key) + len(value) for key, value in page)
            wanted = max(SAFE_PAIRS, min(wanted * PAGE_GROWTH, REPLY_BYTES_MAX // largest))
        return [(key[len(self._namespace) :], value) for key, value in found]

    async def _snapshot(self) -> Any:
        client = await self._connected()
        return client.snapshot(await client.current_timestamp(), False)

    async def _connected(self) -> Any:
        async with self._connecting:
            if self._client is None:
                self._client = await self._library.TransactionClient.connect(self._endpoints)
            return self._client


async def _over_splits(read: Callable[[], Awaitable[T]]) -> T:
    """Repeat what changes nothing until it gives something, or fails for longer than a split."""
    now_s = asyncio.get_running_loop().time
    ends_s = now_s() + SPLIT_S_MAX
    while True:
        try:
            return await read()
        except Exception:  # bare exceptions: the client tells a split from nothing else
            if now_s() > ends_s:
                raise
        await asyncio.sleep(SPLIT_PAUSE_S)


async def _prepared(transaction: Any, write: Callable[[Any], Awaitable[bool]]) -> bool:
    written = False
    try:
        written = await write(transaction)
    finally:
        if not written:
            await transaction.rollback()
    return written


async def _page(snapshot: Any, start: bytes, end: bytes, wanted: int) -> list[Pair]:
    """Return a page of a scan; a short one when the values are suddenly large."""
    try:
        page = await snapshot.scan(start, end, wanted)
    except Exception:  # the client cannot tell that the reply was too long from anything else
        page = await snapshot.scan(start, end, min(wanted, SAFE_PAIRS))
    return [(bytes(key), bytes(value)) for key, value in page]


def _ignore(task: asyncio.Task[Any]) -> None:
    """Take the outcome of a call that nobody waits for any more."""
    if not task.cancelled():
        task.exception()
