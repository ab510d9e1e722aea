"""Each rule of the recorded history fails on a history that breaks it, and on no good one."""

from dataclasses import replace

import pytest
from hongbao.shards.block import Block, BlockKind

from tests.stores.history import Grant, Recorded, check_history

FIRST, SECOND = b"a" * 16, b"b" * 16
LOG = (
    Block(BlockKind.EPOCH, 3, FIRST, 0, ()),
    Block(BlockKind.OPERATIONS, 3, FIRST, 1, (b"one",)),
    Block(BlockKind.EPOCH, 8, SECOND, 2, ()),
    Block(BlockKind.OPERATIONS, 8, SECOND, 3, (b"two",)),
)
GRANTS = [Grant(0, "a", 3), Grant(1, "a", 5), Grant(0, "b", 8)]


def broken(recorded: Recorded, log: tuple[Block, ...] = LOG) -> set[str]:
    return {one.rule for one in check_history("toy", recorded, {0: log})}


def test_a_good_history_breaks_nothing() -> None:
    assert broken(Recorded(GRANTS, {0: list(LOG[:3])})) == set()


def test_an_epoch_before_the_recording_is_not_judged() -> None:
    assert broken(Recorded(GRANTS[1:], {0: list(LOG)})) == set()


@pytest.mark.parametrize(
    ("recorded", "log", "rule"),
    [
        (Recorded([*GRANTS, Grant(0, "a", 8)], {0: []}), LOG, "epochs only rise"),
        (Recorded(GRANTS[::-1], {0: []}), LOG, "epochs only rise"),
        (Recorded(GRANTS[:2], {0: []}), LOG, "who writes was granted the lease"),
        (Recorded([], {0: []}), LOG, "who writes was granted the lease"),
        (Recorded(GRANTS, {0: list(LOG[1:])}), LOG, "readers see a prefix of the log"),
        (Recorded(GRANTS, {0: list(LOG)}), LOG[:3], "readers see a prefix of the log"),
        (Recorded(GRANTS, {0: []}), LOG[:1] + LOG[2:], "no hole in the log"),
        (
            Recorded(GRANTS, {0: []}),
            (*LOG, replace(LOG[1], position=4)),
            "epochs only rise",
        ),
        (
            Recorded(GRANTS, {0: []}),
            (*LOG[:3], replace(LOG[3], nonce=FIRST)),
            "one writer per epoch",
        ),
    ],
)
def test_a_bad_history_is_caught(recorded: Recorded, log: tuple[Block, ...], rule: str) -> None:
    assert rule in broken(recorded, log)
