"""Owns the logs on TiKV's raw API: compare-and-swap on absent keys, ordered puts, scans.

TiKV's atomic unit is one raft command of one region: a single key, or a batch of puts that lie in
one region. Import this module only where TiKV is configured: its client takes a while to load.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Final

import grpc
import tikv
from tikv._async._client import BATCH_MAX_BYTES, BATCH_MAX_KEYS, SCAN_PAGE_SIZE
from tikv._async._transport import Transport
from tikv._backoff import Backoff
from tikv._proto import kvrpcpb_pb2 as kvrpcpb
from tikv._region import Region
from tikv._rpc import CHANNEL_OPTIONS, RAW_BATCH_PUT

from hongbao.adapters.memory import check_pair
from hongbao.adapters.tikv_calls import CALL_S_MAX, TRY_S_MAX, Turns, within
from hongbao.domain.errors import Ambiguous, Transient

HARD_TRY_S_MAX: Final = TRY_S_MAX + 1.0
"""The client forgets a leader that did not answer when its own limit is over, so ours is later."""
RECONNECT_MS_MAX: Final = 1000
"""gRPC would wait up to two minutes before it tries a server again that was away."""

SCANS_MAX: Final = 16
"""A log that grows so fast at a border of regions is read later."""

_FAILED: Final = (tikv.TiKVError, TimeoutError)
_SURELY_NOT: Final = (tikv.PDError, tikv.RegionError)
"""Of a compare-and-swap: nobody to send it to, or only answers by which it was not proposed. The
client sends it again behind those alone; every other failure of a try ends it as undetermined."""

Pair = tuple[bytes, bytes]


@dataclass(frozen=True, slots=True)
class TikvTls:
    """Names the PEM files for TLS; `cert` and `key` are ours, where the cluster wants them."""

    ca: Path
    cert: Path | None = None
    key: Path | None = None


class TikvStore:
    """Is a LogStore on TiKV; all keys lie under `namespace`, so that runs can share a cluster.

    Raw and transactional clients must not share keys.
    """

    def __init__(
        self, pd_endpoints: Sequence[str], *, namespace: bytes = b"", tls: TikvTls | None = None
    ) -> None:
        config = tikv.TLSConfig(tls.ca, tls.cert, tls.key) if tls else None
        self._client = _OrderedClient(pd_endpoints, config)
        self._namespace = namespace
        self._turns = Turns()
        self._closed = False

    async def create(self, key: bytes, value: bytes) -> bool:
        check_pair(key, value)
        name = self._name(key)
        async with self._turns.turn():
            try:
                swap = self._client.compare_and_swap(name, None, value)
                return (await within(HARD_TRY_S_MAX, swap)).swapped
            except _SURELY_NOT as error:
                raise Transient(f"create {key!r}: {error}") from error
            except _FAILED as error:
                found = await self._read_back(name)
                # Nothing is ever overwritten or deleted: another's value means that ours lost.
                if found is not None and found != value:
                    return False
                raise Ambiguous(f"create {key!r}: {error}") from error

    async def put_many(self, items: Sequence[Pair]) -> None:
        for key, value in items:
            check_pair(key, value)
        named = [(self._name(key), value) for key, value in items]
        async with self._turns.turn():
            try:
                await within(CALL_S_MAX, self._client.put_in_order(named))
            except _FAILED as error:
                raise Ambiguous(f"put of {len(items)} keys: {error}") from error

    async def get(self, key: bytes) -> bytes | None:
        name = self._name(key)
        async with self._turns.turn():
            try:
                return await within(HARD_TRY_S_MAX, self._client.get(name))
            except _FAILED as error:
                raise Transient(f"get {key!r}: {error}") from error

    async def scan(self, start: bytes, end: bytes, limit: int) -> list[Pair]:
        first, last = self._name(start), self._name(end)
        async with self._turns.turn():
            try:
                found = await within(CALL_S_MAX, self._scan(first, last, limit))
            except _FAILED as error:
                raise Transient(f"scan {start!r} to {end!r}: {error}") from error
        return [(key[len(self._namespace) :], value) for key, value in found]

    async def close(self) -> None:
        """Close the connections; calls under way end as Ambiguous or Transient."""
        self._closed = True
        await self._client.close()

    def _name(self, key: bytes) -> bytes:
        if self._closed:
            raise Transient("the store's client is closed")
        return self._namespace + key

    async def _scan(self, start: bytes, end: bytes, limit: int) -> list[Pair]:
        """Return pairs of which none is missing that was there before the last of them.

        One request is answered at one moment, but regions, and the pages of one region, are asked
        one after the other: a key may come into the first after its answer, and a later one into
        the second before. Then look again.
        """
        before = await self._client.region_of(start)
        found = await self._client.scan_once(start, end, limit)
        for _ in range(SCANS_MAX):
            if not found:
                return found
            behind = found[-1][0] + b"\0" if len(found) == limit else end
            after = await self._client.region_of(start)
            # Another region than before: two may have been asked that have merged since.
            if (
                _asked_once(len(found), limit)
                and _same(before, after)
                and after.contains_end(behind)
            ):
                return found
            before = after
            again = await self._client.scan_once(start, end, limit)
            if again[: len(found)] == found:
                return found
            found = again
        raise TimeoutError(f"{SCANS_MAX} scans over several regions each found something new")

    async def _read_back(self, name: bytes) -> bytes | None:
        """Read a key whose creation was not answered; None when that fails, too.

        Only a read makes the client forget the leader that it could not reach: a client of creates
        alone would ask a dead one for ever.
        """
        try:
            return await within(HARD_TRY_S_MAX, self._client.get(name))
        except _FAILED:
            return None


class _OrderedClient(tikv.AsyncRawClient):
    """Is the client, with puts in order and a quick return to servers that were away.

    It reaches into the client's inside, so that is pinned to one version.
    """

    def __init__(self, pd_endpoints: Sequence[str], tls: tikv.TLSConfig | None) -> None:
        super().__init__(pd_endpoints, timeout=TRY_S_MAX, atomic=True, tls=tls)
        self._transport = _Transport(tls.credentials() if tls else None)
        self._pd._transport = self._transport

    async def scan_once(self, start: bytes, end: bytes, limit: int) -> list[Pair]:
        return [pair async for pair in self.scan(start, end, limit=limit)]

    async def region_of(self, key: bytes) -> Region:
        """Return the region that a key is asked of now, as far as this client knows."""
        return await self._locate(key, Backoff(TRY_S_MAX))

    async def put_in_order(self, items: Sequence[Pair]) -> None:
        """Put pairs so that at any moment a prefix of them is visible.

        One request carries what lies in one region, which applies it at once or, when its borders
        have moved, not at all.
        """
        backoff = Backoff(TRY_S_MAX)
        while items:
            region = await self._locate(items[0][0], backoff)
            run = _first_run(items, region)
            pairs = [kvrpcpb.KvPair(key=key, value=value) for key, value in run]
            request = kvrpcpb.RawBatchPutRequest(pairs=pairs, for_cas=True)
            if await self._send(region, RAW_BATCH_PUT, request, backoff) is not None:
                items, backoff = items[len(run) :], Backoff(TRY_S_MAX)


class _Transport(Transport):
    """Opens channels that soon try again."""

    def _channel(self, address: str) -> grpc.aio.Channel:
        channel = self._channels.get(address)
        if channel is None:
            options = [*CHANNEL_OPTIONS, ("grpc.max_reconnect_backoff_ms", RECONNECT_MS_MAX)]
            if self._credentials is None:
                channel = grpc.aio.insecure_channel(address, options)
            else:
                channel = grpc.aio.secure_channel(address, self._credentials, options)
            self._channels[address] = channel
        return channel


def _asked_once(found: int, limit: int) -> bool:
    """Tell whether the client got so many pairs of one region by one request."""
    return limit <= SCAN_PAGE_SIZE or found < SCAN_PAGE_SIZE


def _same(before: Region, after: Region) -> bool:
    """Tell whether two are one region with the same borders: only its leader may have moved."""
    versions = before.meta.region_epoch.version, after.meta.region_epoch.version
    return before.id == after.id and versions[0] == versions[1]


def _first_run(items: Sequence[Pair], region: Region) -> list[Pair]:
    """Return the first pairs that fit into one request to a region; no key twice."""
    size, seen = 0, set[bytes]()

    def fits(pair: Pair) -> bool:
        nonlocal size
        key, value = pair
        size += len(key) + len(value)
        fresh = key not in seen
        seen.add(key)
        few = len(seen) <= BATCH_MAX_KEYS and (size <= BATCH_MAX_BYTES or len(seen) == 1)
        return fresh and few and region.contains(key)

    return list(takewhile(fits, items))
