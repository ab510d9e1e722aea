"""Each rule of the recorded history fails on a history that breaks it, and on no good one."""

from dataclasses import replace

import pytest
from hongbao.adapters.memory import MemoryStore
from hongbao.shards.block import Block, BlockKind
from hongbao.shards.ports import Lease

from tests.stores.history import End, Grant, Recorded, Recorder, check_history, check_leases

FIRST, SECOND = b"a" * 16, b"b" * 16
LOG = (
    Block(BlockKind.EPOCH, 3, FIRST, 0, ()),
    Block(BlockKind.OPERATIONS, 3, FIRST, 1, (b"one",)),
    Block(BlockKind.EPOCH, 8, SECOND, 2, ()),
    Block(BlockKind.OPERATIONS, 8, SECOND, 3, (b"two",)),
)
LEASES = [Grant(0, "a", 3), Grant(1, "a", 5), End(0, 6), Grant(0, "b", 8)]
OTHER_LOG = (Block(BlockKind.EPOCH, 5, b"c" * 16, 0, ()),)


def broken(
    recorded: Recorded, log: tuple[Block, ...] = LOG, other: tuple[Block, ...] = OTHER_LOG
) -> set[str]:
    recorded.reads.setdefault(1, [])
    return {one.rule for one in check_history("toy", recorded, {0: log, 1: other})}


def test_a_good_history_breaks_nothing() -> None:
    assert broken(Recorded([*LEASES], {0: list(LOG[:3])})) == set()


def test_an_epoch_before_the_recording_is_not_judged() -> None:
    assert broken(Recorded(LEASES[1:], {0: list(LOG)})) == set()


def test_a_process_that_starts_anew_may_be_granted_what_it_holds() -> None:
    again = [*LEASES, Grant(0, "b", 9), End(0, 11), Grant(0, "a", 12)]
    assert broken(Recorded(again, {0: []})) == set()


@pytest.mark.parametrize(
    ("leases", "rule"),
    [
        ([*LEASES, Grant(0, "a", 9)], "one holder at a time"),
        ([one for one in LEASES if one != End(0, 6)], "one holder at a time"),
        ([*LEASES[:2], End(1, 6), LEASES[3]], "one holder at a time"),
        ([*LEASES, End(0, 9), End(0, 10)], "what ends was held"),
        ([*LEASES, Grant(0, "b", 8)], "epochs only rise"),
        ([*LEASES, End(0, 8)], "epochs only rise"),
        (LEASES[::-1], "epochs only rise"),
    ],
)
def test_leases_that_cannot_have_been_are_caught(leases: list[Grant | End], rule: str) -> None:
    assert rule in broken(Recorded(leases, {0: []}))


@pytest.mark.parametrize(
    ("recorded", "log", "rule"),
    [
        (Recorded(LEASES[:3], {0: []}), LOG, "who writes was granted the lease"),
        (Recorded([], {0: []}), LOG, "who writes was granted the lease"),
        (Recorded(LEASES, {0: list(LOG[1:])}), LOG, "readers see a prefix of the log"),
        (Recorded(LEASES, {0: list(LOG)}), LOG[:3], "readers see a prefix of the log"),
        (Recorded(LEASES, {0: []}), LOG[:1] + LOG[2:], "no hole in the log"),
        (
            Recorded(LEASES, {0: []}),
            (*LOG, replace(LOG[1], position=4)),
            "epochs only rise",
        ),
        (
            Recorded(LEASES, {0: []}),
            (*LOG[:3], replace(LOG[3], nonce=FIRST)),
            "one writer per epoch",
        ),
        (
            Recorded(LEASES, {0: []}),
            (*LOG[:2], *(replace(one, nonce=FIRST) for one in LOG[2:])),
            "one epoch per writer",
        ),
    ],
)
def test_a_bad_history_is_caught(recorded: Recorded, log: tuple[Block, ...], rule: str) -> None:
    assert rule in broken(recorded, log)


def test_a_writer_of_two_shards_is_caught() -> None:
    other = tuple(replace(one, nonce=FIRST) for one in OTHER_LOG)
    assert broken(Recorded([*LEASES], {0: []}), other=other) == {"one epoch per writer"}


class Thief(MemoryStore):
    """Grants a lease to whoever asks."""

    async def acquire(self, name: str, holder: str, *, ttl_s: float, value: bytes) -> Lease | None:
        self._held.pop(name, None)
        return await super().acquire(name, holder, ttl_s=ttl_s, value=value)


@pytest.mark.parametrize(
    ("store_type", "found"), [(MemoryStore, []), (Thief, ["one holder at a time"])]
)
async def test_the_recorder_sees_two_holders_of_one_lease(
    store_type: type[MemoryStore], found: list[str]
) -> None:
    """One process asks for what another holds, and once more when that is given up."""
    store = store_type()
    recorder = Recorder(store, store, "toy", [0])

    async def ask(process: str) -> Lease | None:
        value = b'{"process": "%s"}' % process.encode()
        return await store.acquire("toy/0", process, ttl_s=60, value=value)

    async with recorder.recording():
        first = await ask("a")
        assert first is not None
        early = await ask("b")
        await store.release(early or first)
        assert await ask("b") is not None
    assert [one.rule for one in check_leases(recorder.recorded.leases)] == found
    assert [one.process for one in recorder.recorded.grants][-1] == "b"
    assert sum(isinstance(one, End) for one in recorder.recorded.leases) == 1
