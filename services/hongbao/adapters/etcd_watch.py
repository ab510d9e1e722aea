"""Owns following a prefix of etcd for ever, over lost members, elections and compactions.

Only whole revisions are handed on, so a resume at the last revision + 1 neither loses nor doubles
an event. Where etcd has compacted what comes next, the prefix is listed as of the compaction:
what changed and what vanished until then is handed on, and from there every change again.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any, Final

import grpc
import structlog

from hongbao.adapters.etcd_facts import Namespace, Shown, range_end_of
from hongbao.adapters.etcd_members import ATTEMPT_S_MAX, HAS_LEADER, QUIET_S_MAX, Member, Members
from hongbao.domain.errors import Transient
from hongbao.proto.etcd import rpc_pb2 as pb
from hongbao.proto.etcd.kv_pb2 import Event, KeyValue
from hongbao.shards.ports import Versioned

RETRY_S: Final = 0.05
RETRY_S_MAX: Final = 1.0
STEADY_S: Final = 5.0
"""A watch that lasted so long was a good one; shorter ones in a row are waited for longer."""
STARVED_S_MAX: Final = 5.0
"""A watch that was silent for so long is asked whether it is served, and has as long to answer."""
FAILURES_TOLD: Final = 10
"""So many failures in a row, which take seconds, are a warning, and every so many more."""
PROGRESS: Final = pb.WatchRequest(progress_request=pb.WatchProgressRequest())
log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class WatchSource:
    """Is what a watch needs of its adapter; `list_at` reads a prefix as of a revision."""

    members: Members
    namespace: Namespace
    shown: Shown
    list_at: Callable[[str, int], Awaitable[list[KeyValue]]]


class _Compacted(Exception):
    def __init__(self, revision: int) -> None:
        super().__init__(revision)
        self.revision = revision


class _Broken(Exception):
    """Says that a member's watch is over: go on with another."""


async def follow(source: WatchSource, prefix: str, after_revision: int) -> AsyncIterator[Versioned]:
    """Yield every later change of a prefix, until the connections are let go: Closed."""
    failures = 0
    while True:
        member, began_s = source.members.preferred, _now_s()
        try:
            request = _create_request(source.namespace.key(prefix), after_revision + 1)
            async with aclosing(_revisions(source.members, member, request)) as batches:
                async for events in batches:
                    for event in events:
                        yield _noted(source, event)
                    after_revision = events[-1].kv.mod_revision
        except _Compacted as compacted:
            try:
                facts = await _bridge(source, prefix, after_revision, compacted.revision)
            except Transient as error:  # also: compacted once more meanwhile
                failures += 1
                tell = log.debug if failures % FAILURES_TOLD else log.warning
                tell("etcd_gap_unread", prefix=prefix, error=str(error), row=failures)
                await _pause(source, failures)
                continue
            failures = 0
            for fact in facts:
                yield fact
            after_revision = compacted.revision
        except (_Broken, grpc.aio.AioRpcError) as error:
            failures = 1 if _now_s() > began_s + STEADY_S else failures + 1
            tell = log.debug if failures % FAILURES_TOLD else log.warning
            text = error.details() if isinstance(error, grpc.aio.AioRpcError) else str(error)
            tell("etcd_watch_moved", prefix=prefix, left=member.endpoint, error=text, row=failures)
            source.members.leave(member)
            await _pause(source, failures)


async def _pause(source: WatchSource, failures: int) -> None:
    await source.members.while_open(asyncio.sleep(min(RETRY_S * failures, RETRY_S_MAX)))


async def first_change(members: Members, key: bytes, after_revision: int) -> KeyValue:
    """Return the first change of a key behind a revision, where there is one. Raises Transient."""
    request = pb.WatchRequest(
        create_request=pb.WatchCreateRequest(key=key, start_revision=after_revision + 1)
    )
    try:
        async with (
            asyncio.timeout(ATTEMPT_S_MAX),
            aclosing(_revisions(members, members.preferred, request)) as batches,
        ):
            return (await anext(batches))[0].kv
    except (_Broken, _Compacted, TimeoutError, grpc.aio.AioRpcError) as error:
        raise Transient(f"etcd: history of {key!r}: {type(error).__name__}") from None


async def _bridge(
    source: WatchSource, prefix: str, after_revision: int, compacted: int
) -> list[Versioned]:
    """Return what changed after a revision up to the compaction: the last change of each key."""
    known = source.shown.keys(prefix, after_revision)
    facts = [source.namespace.fact(kv) for kv in await source.list_at(prefix, compacted)]
    changed = [source.shown.there(fact) for fact in facts if fact.revision > after_revision]
    vanished = sorted(known - {fact.key for fact in facts})
    for key in vanished:
        source.shown.absent(key, compacted)
    return sorted(changed, key=lambda fact: fact.revision) + [
        Versioned(key, b"", compacted) for key in vanished
    ]


def _now_s() -> float:
    return asyncio.get_running_loop().time()


def _noted(source: WatchSource, event: Event) -> Versioned:
    fact = source.namespace.fact(event.kv)
    if event.type == Event.DELETE:
        source.shown.absent(fact.key, fact.revision)
        return fact
    return source.shown.there(fact)


def _create_request(start: bytes, revision: int) -> pb.WatchRequest:
    create = pb.WatchCreateRequest(
        key=start or b"\0", range_end=range_end_of(start), start_revision=revision, fragment=True
    )
    return pb.WatchRequest(create_request=create)


async def _revisions(
    members: Members, member: Member, request: pb.WatchRequest
) -> AsyncGenerator[list[Event], None]:
    """Yield the events of one watch on one member, whole revisions at a time."""
    members.check_open()
    call = member.watch(metadata=HAS_LEADER)
    try:
        await members.while_open(call.write(request))
        pending: list[Event] = []
        while True:
            response = await members.while_open(_read(call, member))
            if response.canceled:
                if response.compact_revision:
                    raise _Compacted(response.compact_revision)
                raise _Broken(response.cancel_reason)
            if not response.events:
                continue  # it was created, or answers whether it is served
            pending += response.events
            whole, pending = _split(pending) if response.fragment else (pending, [])
            if whole:
                yield whole
    finally:
        call.cancel()


def _split(events: list[Event]) -> tuple[list[Event], list[Event]]:
    """Part the last revision, of which more may come, from those before it."""
    last = events[-1].kv.mod_revision
    at = next(index for index, event in enumerate(events) if event.kv.mod_revision == last)
    return events[:at], events[at:]


async def _read(call: Any, member: Member) -> pb.WatchResponse:
    """Return the next response; while there is none, ask whether member and watch are there.

    A member may answer calls and serve no watch: a silent one is asked for its progress.
    """
    reading, began_s, asked = asyncio.ensure_future(call.read()), _now_s(), False
    try:
        while not (await asyncio.wait({reading}, timeout=QUIET_S_MAX))[0]:
            if not await member.alive() and not reading.done():
                raise _Broken("the member does not answer")
            silent_s = _now_s() - began_s
            if silent_s > STARVED_S_MAX and not asked:
                asked = True
                with suppress(asyncio.InvalidStateError):  # it has just ended: reading tells
                    await call.write(PROGRESS)
            elif silent_s > 2 * STARVED_S_MAX and not reading.done():
                raise _Broken("the member answers, but not on this watch")
        response = reading.result()
    finally:
        reading.cancel()
    if response is grpc.aio.EOF:
        raise _Broken(f"{(await call.code()).name}: {await call.details()}")
    member.heard()
    return response  # type: ignore[no-any-return]
