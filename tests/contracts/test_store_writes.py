"""Proves that the writes of a process share calls, each with its own outcome."""

import asyncio
from collections.abc import Sequence

import pytest
from hongbao.adapters import store_writes
from hongbao.adapters.store_writes import StoreWrites
from hongbao.domain.errors import Ambiguous, Overloaded, Transient
from hongbao.proto.v1 import store_pb2 as pb
from hongbao.shards import wire

from tests.waiting import LIMIT_S, until


class Calls:
    """Is a store that answers when it is told, and fails as it is told."""

    def __init__(self) -> None:
        self.sent: list[list[bytes]] = []
        self.go = asyncio.Event()
        self.go.set()
        self.fails: Exception | None = None

    async def send(self, items: Sequence[pb.WriteItem]) -> pb.WriteReply:
        self.sent.append([item.pairs[0].key for item in items])
        await self.go.wait()
        if self.fails is not None:
            raise self.fails
        reply = pb.WriteReply(written=[item.pairs[0].key != b"there" for item in items])
        reply.failures.extend(
            wire.failure_of(index, Overloaded("full", retry_after_s=3.0))
            for index, item in enumerate(items)
            if item.pairs[0].key == b"full"
        )
        return reply


def create(writes: StoreWrites, key: bytes) -> "asyncio.Task[bool]":
    return asyncio.create_task(writes.write([(key, b"v")], create=True))


def put(writes: StoreWrites, key: bytes) -> "asyncio.Task[bool]":
    return asyncio.create_task(writes.write([(key, b"v")], create=False))


async def test_a_lone_create_goes_at_once_and_what_comes_meanwhile_shares_the_next_call() -> None:
    calls = Calls()
    writes = StoreWrites(calls.send)
    calls.go.clear()
    first = create(writes, b"1")
    await until(lambda: calls.sent, "the first is sent")
    later = [create(writes, b"2"), put(writes, b"3"), create(writes, b"4")]
    await asyncio.sleep(0.02)
    assert calls.sent == [[b"1"]]
    calls.go.set()
    assert await asyncio.gather(first, *later) == [True] * 4
    assert calls.sent == [[b"1"], [b"2", b"3", b"4"]]


async def test_each_write_has_its_own_outcome() -> None:
    writes = StoreWrites(Calls().send)
    tasks = [create(writes, key) for key in (b"new", b"there", b"full")]
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert ends[:2] == [True, False]
    assert isinstance(ends[2], Overloaded)
    assert ends[2].retry_after_s == 3.0


async def test_puts_wait_for_a_create_but_not_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_writes, "PUT_WAIT_S", LIMIT_S)
    calls = Calls()
    writes = StoreWrites(calls.send)
    waiting = [put(writes, b"1"), put(writes, b"2")]
    await asyncio.sleep(0.01)
    assert calls.sent == []
    await asyncio.gather(create(writes, b"3"), *waiting)
    assert calls.sent == [[b"1", b"2", b"3"]]
    monkeypatch.setattr(store_writes, "PUT_WAIT_S", 0.05)
    began_s = asyncio.get_running_loop().time()
    await asyncio.wait_for(put(writes, b"4"), LIMIT_S)
    assert asyncio.get_running_loop().time() - began_s >= 0.04
    assert calls.sent[1:] == [[b"4"]]


async def test_writes_one_after_another_are_never_forgotten() -> None:
    """A write may come in the moment in which the last call ends."""
    writes = StoreWrites(Calls().send)

    async def write_often(name: bytes) -> None:
        for _ in range(200):
            assert await writes.write([(name, b"")], create=True)

    async with asyncio.timeout(LIMIT_S):
        await asyncio.gather(*(write_often(b"%d" % number) for number in range(3)))


async def test_a_call_that_fails_fails_all_its_writes_and_no_others() -> None:
    calls = Calls()
    writes = StoreWrites(calls.send)
    calls.fails = Ambiguous("lost on the way")
    ends = await asyncio.gather(create(writes, b"1"), create(writes, b"2"), return_exceptions=True)
    assert [type(end) for end in ends] == [Ambiguous] * 2
    assert ends[0] is not ends[1]
    calls.fails = Transient("full")
    with pytest.raises(Transient):
        await create(writes, b"3")
    calls.fails = None
    assert await create(writes, b"4")


async def test_a_bug_in_a_call_leaves_no_writer_waiting() -> None:
    calls = Calls()
    writes = StoreWrites(calls.send)
    calls.fails = ValueError("a failure that nobody foresaw")
    tasks = [create(writes, b"1"), put(writes, b"2")]
    ends = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), LIMIT_S)
    assert [type(end) for end in ends] == [Ambiguous] * 2
    calls.fails = None
    assert await create(writes, b"3")


async def test_a_reply_that_fails_a_write_nobody_sent_leaves_no_writer_waiting() -> None:
    async def send(items: Sequence[pb.WriteItem]) -> pb.WriteReply:
        reply = pb.WriteReply(written=[True] * len(items))
        reply.failures.append(wire.failure_of(len(items), Transient("full")))
        return reply

    with pytest.raises(Ambiguous):
        await asyncio.wait_for(create(StoreWrites(send), b"1"), LIMIT_S)


async def test_a_write_behind_the_close_is_refused() -> None:
    calls = Calls()
    writes = StoreWrites(calls.send)
    calls.go.clear()
    first = create(writes, b"1")
    await until(lambda: calls.sent, "the first is sent")
    writes.close()
    for late in (create(writes, b"2"), put(writes, b"3")):  # the sender has not ended yet
        with pytest.raises(Transient) as caught:
            await asyncio.wait_for(late, LIMIT_S)
        assert type(caught.value) is Transient
    with pytest.raises(Ambiguous):
        await first


async def test_calls_and_queue_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_writes, "CALL_ITEMS_MAX", 3)
    monkeypatch.setattr(store_writes, "WAITING_MAX", 7)
    calls = Calls()
    writes = StoreWrites(calls.send)
    calls.go.clear()
    tasks = [create(writes, b"%d" % number) for number in range(8)]
    await asyncio.sleep(0.01)
    calls.go.set()
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(end) for end in ends] == [bool] * 7 + [Overloaded]
    assert [len(sent) for sent in calls.sent] == [3, 3, 1]


async def test_a_closed_client_leaves_no_writer_waiting() -> None:
    calls = Calls()
    writes = StoreWrites(calls.send)
    calls.go.clear()
    tasks = [create(writes, b"1")]
    await until(lambda: calls.sent, "the first is sent")
    tasks += [create(writes, b"2"), put(writes, b"3")]
    await asyncio.sleep(0.01)
    writes.close()
    ends = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), LIMIT_S)
    assert [type(end) for end in ends] == [Ambiguous] * 3


async def test_a_writer_that_goes_away_before_its_call_writes_nothing() -> None:
    calls = Calls()
    writes = StoreWrites(calls.send)
    calls.go.clear()
    first = create(writes, b"1")
    await until(lambda: calls.sent, "the first is sent")
    gone, stays = create(writes, b"2"), create(writes, b"3")
    await asyncio.sleep(0.01)
    gone.cancel()
    await asyncio.sleep(0)
    calls.go.set()
    await asyncio.gather(first, stays)
    assert calls.sent == [[b"1"], [b"3"]]
