"""Owns Coordination on etcd: leases, members, assignments, switches, over etcd's own messages.

Every write is a compare-and-put: repeated when its outcome is unknown, which is safe, and then
read back by its stamp. Leases are etcd's: the epoch is the revision that wrote `lease/<name>`.
Needs etcd 3.5.18 or newer: before, a compaction could drop the deletion at its own revision. A
backup must be restored with revisions raised (etcdutl --bump-revision): epochs never fall.
"""

import asyncio
import itertools
import math
import secrets
from collections.abc import AsyncIterator, Awaitable
from contextlib import suppress
from typing import Any, Final

import grpc

from hongbao.adapters.etcd_facts import (
    Namespace,
    Shown,
    WriteCounts,
    holder_of,
    range_end_of,
    stamp_of,
    stamped,
)
from hongbao.adapters.etcd_members import (
    ATTEMPT_S_MAX,
    HAS_LEADER,
    Answer,
    EtcdSettings,
    Member,
    Members,
    NoSpace,
)
from hongbao.adapters.etcd_watch import WatchSource, first_change, follow
from hongbao.adapters.memory import check_fact, check_lease
from hongbao.domain.errors import Ambiguous, Transient
from hongbao.proto.etcd import rpc_pb2 as pb
from hongbao.proto.etcd.kv_pb2 import KeyValue
from hongbao.shards.ports import Lease, Versioned

LIST_PAGE_KEYS: Final = 256
CONTENDED_WRITES_MAX: Final = 64
RENEW_SHARE: Final = 0.125
"""Share of a lease's TTL that one member gets for one attempt at a renewal: holders give the
whole renewal a quarter, so that the next member still has its turn."""
RENEW_ATTEMPT_S_MIN: Final = 0.1


class EtcdCoordination:
    """Is a Coordination on an etcd cluster; needs a running event loop."""

    def __init__(self, settings: EtcdSettings) -> None:
        self.writes = WriteCounts()
        self._members = Members(settings)
        self._namespace = Namespace(settings.namespace)
        self._shown = Shown()
        self._stamps = (f"{secrets.token_hex(8)}-{number}" for number in itertools.count())
        self._lease_ids: dict[tuple[str, int], int] = {}
        self._watch_source = WatchSource(self._members, self._namespace, self._shown, self._list_at)

    @property
    def endpoint(self) -> str:
        """Return the member that the next call goes to."""
        return self._members.preferred.endpoint

    async def close(self) -> None:
        """Let go of all connections; leases run out by themselves.

        Calls under way and later ones end with Transient or Ambiguous, watches with Transient.
        """
        await self._members.close()

    async def read(self, key: str) -> Versioned:
        found = await self._get(key)
        return Versioned(key, b"", 0) if found is None else self._namespace.fact(found)

    async def read_prefix(self, prefix: str) -> list[Versioned]:
        found, revision = await self._list(prefix, 0)
        facts = [self._shown.there(self._namespace.fact(kv)) for kv in found]
        self._shown.listed(prefix, (fact.key for fact in facts), revision)
        return facts

    async def compare_and_put(self, key: str, value: bytes, *, revision: int) -> Versioned | None:
        """Write as the port says; at revision 0 a late first try may create a fact anew.

        That is: when its reply was lost and the fact was created and deleted meanwhile. No service
        deletes facts through here today; a lease's key is safe, because its lease is revoked.
        """
        check_fact(key, value)
        stamp = next(self._stamps)
        written = await self._swap(key, stamped(value, stamp), stamp, revision)
        return None if written is None else self._shown.there(Versioned(key, value, written))

    async def put(self, key: str, value: bytes) -> Versioned:
        """Write whatever is there; of an absent key what `compare_and_put` says of revision 0."""
        check_fact(key, value)
        stamp = next(self._stamps)
        body = stamped(value, stamp)
        for _ in range(CONTENDED_WRITES_MAX):
            # Not a plain put: one that arrives late would take back what was written meanwhile.
            found = await self._get(key)
            revision = 0 if found is None else found.mod_revision
            written = await self._swap(key, body, stamp, revision)
            if written is not None:
                return self._shown.there(Versioned(key, value, written))
        raise Transient(f"etcd: {key} changes too often to be written")

    async def delete(self, key: str) -> None:
        for _ in range(CONTENDED_WRITES_MAX):
            found = await self._get(key)
            if found is None:
                return
            target = self._namespace.key(key)
            request = pb.TxnRequest(
                compare=[_unchanged(target, found.mod_revision)],
                success=[pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=target))],
            )
            answer = await self._write(key, "txn", request)
            if answer.reply.succeeded:
                self._shown.absent(key, answer.reply.header.revision)
                return
        raise Transient(f"etcd: {key} changes too often to be deleted")

    def watch(self, prefix: str, *, after_revision: int) -> AsyncIterator[Versioned]:
        return follow(self._watch_source, prefix, after_revision)

    async def acquire(self, name: str, holder: str, *, ttl_s: float, value: bytes) -> Lease | None:
        check_lease(name, ttl_s, value)
        key, stamp = f"lease/{name}", next(self._stamps)
        body = stamped(value, stamp, holder)
        current = await self._get(key)
        if current is not None and holder_of(current.value) != holder:
            return None  # known from a read: whoever waits for a lease writes nothing
        grant = pb.LeaseGrantRequest(TTL=max(1, math.ceil(ttl_s)))
        lease_id = int((await self._write(key, "grant", grant)).reply.ID)
        revision = 0 if current is None else current.mod_revision
        epoch = await self._swap(key, body, stamp, revision, lease_id)
        if epoch is None:
            await self._forsake(key, lease_id, ttl_s)
            return None
        self._shown.there(Versioned(key, value, epoch))
        self._lease_ids[name, epoch] = lease_id
        if current is not None and current.lease:
            self._lease_ids.pop((name, current.mod_revision), None)
            await self._forsake(key, current.lease, ttl_s)
        return Lease(name, holder, epoch, ttl_s)

    async def renew(self, lease: Lease) -> bool:
        attempt_s = _attempt_s(lease.ttl_s)
        key = f"lease/{lease.name}"
        lease_id = await self._id_of(lease, attempt_s)
        if lease_id is None:
            return False

        async def keep_alive(member: Member, timeout_s: float) -> int:
            self.writes.add(key, "keepalive")
            return await member.keep_alive(lease_id, timeout_s)

        answer = await self._members.call(keep_alive, attempt_s=attempt_s)
        # The lease may live on without the key: then its holder has asked again meanwhile.
        found = await self._get(key, attempt_s) if answer.reply > 0 else None
        if found is not None and found.mod_revision == lease.epoch:
            return True
        self._lease_ids.pop((lease.name, lease.epoch), None)
        return False

    async def release(self, lease: Lease) -> None:
        lease_id = await self._id_of(lease, ATTEMPT_S_MAX)
        self._lease_ids.pop((lease.name, lease.epoch), None)
        if lease_id is not None:
            await self._revoke(f"lease/{lease.name}", lease_id)

    async def _id_of(self, lease: Lease, attempt_s: float) -> int | None:
        """Return etcd's id of a lease; None when it is lost."""
        known = self._lease_ids.get((lease.name, lease.epoch))
        if known is not None:
            return known
        found = await self._get(f"lease/{lease.name}", attempt_s)
        if found is None or found.mod_revision != lease.epoch:
            return None
        return int(found.lease)

    async def _forsake(self, key: str, lease_id: int, ttl_s: float) -> None:
        """Revoke a lease that nothing hangs on, at little cost: it also runs out by itself."""
        with suppress(Transient, TimeoutError):
            async with asyncio.timeout(_attempt_s(ttl_s)):
                await self._revoke(key, lease_id)

    async def _revoke(self, key: str, lease_id: int) -> None:
        request = pb.LeaseRevokeRequest(ID=lease_id)

        async def revoke(member: Member, timeout_s: float) -> None:
            self.writes.add(key, "revoke")
            try:
                await member.revoke(request, timeout=timeout_s, metadata=HAS_LEADER)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.NOT_FOUND:  # else an earlier try did it
                    raise

        await self._members.call(revoke)

    async def _swap(
        self, key: str, body: bytes, stamp: str, revision: int, lease_id: int = 0
    ) -> int | None:
        """Write if the key's revision still is `revision`; return the new one, None if it is not.

        Raises Ambiguous when even reading back does not tell.
        """
        target = self._namespace.key(key)
        put = pb.PutRequest(key=target, value=body, lease=lease_id)
        request = pb.TxnRequest(
            compare=[_unchanged(target, revision)],
            success=[pb.RequestOp(request_put=put)],
            failure=[pb.RequestOp(request_range=pb.RangeRequest(key=target))],
        )
        try:
            answer = await self._write(key, "txn", request)
        except NoSpace as full:
            return await self._find_refused(key, stamp, revision, full)
        if answer.reply.succeeded:
            return int(answer.reply.header.revision)
        if not answer.doubtful:
            return None
        found = answer.reply.responses[0].response_range.kvs
        return await self._find_written(key, stamp, revision, found[0] if found else None)

    async def _find_refused(self, key: str, stamp: str, revision: int, full: NoSpace) -> int | None:
        """Return at which revision a write was done that a full etcd refused, as `_swap` does.

        Raises Transient when it was not done, Ambiguous when that cannot be told.
        """
        try:
            found = await self._get(key)
        except Transient as error:
            raise Ambiguous(f"{full}; not read back: {error}") from None
        if found is not None and stamp_of(found.value) == stamp:
            return int(found.mod_revision)
        if revision and found is not None and found.mod_revision == revision:
            raise (Ambiguous if full.doubtful else Transient)(str(full)) from None
        return await self._find_written(key, stamp, revision, found)

    async def _find_written(
        self, key: str, stamp: str, after_revision: int, found: KeyValue | None
    ) -> int | None:
        """Return at which revision a write was done that may have been overwritten meanwhile.

        It is the first change behind `after_revision`, or never was and never will be: None. Of a
        creation (0) this is known only while the key lives on. Raises Ambiguous.
        """
        target = self._namespace.key(key)
        first: KeyValue | None
        try:
            if after_revision:
                first = await first_change(self._members, target, after_revision)
            else:
                created = 0 if found is None else found.create_revision
                first = await self._get(key, revision=created) if created else None
        except Transient as error:  # also: the history is compacted
            raise Ambiguous(f"etcd: whether {key} was written cannot be told: {error}") from None
        if first is not None and stamp_of(first.value) == stamp:
            return int(first.mod_revision)
        if after_revision:
            return None
        raise Ambiguous(f"etcd: whether {key} was created cannot be told")

    async def _get(
        self, key: str, attempt_s: float = ATTEMPT_S_MAX, revision: int = 0
    ) -> KeyValue | None:
        request = pb.RangeRequest(key=self._namespace.key(key), revision=revision)
        reply = await self._range(request, attempt_s)
        if reply.kvs:
            self._shown.there(self._namespace.fact(reply.kvs[0]))
            return reply.kvs[0]
        if not revision:
            self._shown.absent(key, reply.header.revision)
        return None

    async def _list(self, prefix: str, revision: int) -> tuple[list[KeyValue], int]:
        """Return all of a prefix as of one revision (0: now), and that revision."""
        start = self._namespace.key(prefix)
        at, end = start or b"\0", range_end_of(start)
        found: list[KeyValue] = []
        while True:
            request = pb.RangeRequest(
                key=at, range_end=end, revision=revision, limit=LIST_PAGE_KEYS
            )
            reply = await self._range(request, ATTEMPT_S_MAX)
            found += reply.kvs
            revision = revision or reply.header.revision
            if not reply.more:
                return found, revision
            at = found[-1].key + b"\0"

    async def _list_at(self, prefix: str, revision: int) -> list[KeyValue]:
        return (await self._list(prefix, revision))[0]

    async def _range(self, request: pb.RangeRequest, attempt_s: float) -> pb.RangeResponse:
        def attempt(member: Member, timeout_s: float) -> Awaitable[pb.RangeResponse]:
            return member.range(request, timeout=timeout_s, metadata=HAS_LEADER)  # type: ignore[no-any-return]

        try:
            return (await self._members.call(attempt, attempt_s=attempt_s)).reply
        except Ambiguous as error:
            raise Transient(str(error)) from None  # a read changes nothing

    async def _write(self, key: str, kind: str, request: Any) -> Answer[Any]:
        def attempt(member: Member, timeout_s: float) -> Awaitable[Any]:
            self.writes.add(key, kind)
            method = getattr(member, kind)
            return method(request, timeout=timeout_s, metadata=HAS_LEADER)  # type: ignore[no-any-return]

        return await self._members.call(attempt)


def _attempt_s(ttl_s: float) -> float:
    return min(ATTEMPT_S_MAX, max(RENEW_ATTEMPT_S_MIN, ttl_s * RENEW_SHARE))


def _unchanged(key: bytes, revision: int) -> pb.Compare:
    return pb.Compare(
        key=key, target=pb.Compare.MOD, result=pb.Compare.EQUAL, mod_revision=revision
    )
