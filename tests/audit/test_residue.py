"""Proves the residue: what dead instances had reserved, to the record (F1)."""

import pytest
from hongbao.audit.residue import Residue
from hongbao.domain.cursor import (
    RESERVED,
    RETURNED,
    CursorEntry,
    cursor_end,
    cursor_key,
    pack_cursor,
    parse_cursor,
)
from hongbao.domain.errors import Corrupt
from hypothesis import given
from hypothesis import strategies as st

from tests.audit.world import Run


def reserved(start: int, end: int, *, issued: int | None = None, epoch: int = 1) -> CursorEntry:
    return CursorEntry(RESERVED, 1, epoch, start, end, start if issued is None else issued)


def returned(issued: int, end: int, *, epoch: int = 1) -> CursorEntry:
    return CursorEntry(RETURNED, 1, epoch, issued, end, issued)


async def residue_of(run: Run, *entries: CursorEntry, alive: tuple[int, int] | None = None) -> int:
    await run.play(count=5)
    await run.reserve(0, *entries)
    report = await run.audit(alive={alive} if alive else set())
    assert report.line["equations"] == "hold"
    assert sum(row["packets"] for row in report.tables.residues) == report.line["residue_packets"]
    return int(report.line["residue_packets"])


async def test_a_clean_drain_leaves_no_residue(run: Run) -> None:
    assert await residue_of(run, reserved(0, 20), returned(13, 20)) == 0


async def test_an_instance_that_died_leaves_what_it_had_not_reported(run: Run) -> None:
    """F1: it reserved up to 60 and last said that 35 were issued; the next goes on at 60."""
    entries = (reserved(0, 20), reserved(20, 40, issued=12), reserved(40, 60, issued=35))
    assert (
        await residue_of(run, *entries, reserved(60, 70, epoch=2), returned(64, 70, epoch=2)) == 25
    )


async def test_the_last_instance_counts_only_when_it_is_dead(run: Run) -> None:
    assert await residue_of(run, reserved(0, 20), reserved(20, 40, issued=15), alive=(1, 1)) == 0
    report = await run.audit()
    assert report.line["residue_packets"] == 25
    row = report.tables.residues[0]
    wanted = Residue(file=0, slot=1, pod=1, pod_epoch=1, start=15, end=40)
    assert (row["start"], row["end"], row["packets"]) == (wanted.start, wanted.end, wanted.packets)
    file, other = report.tables.files[:2]
    assert (file["packets_reserved"], file["residue_packets"]) == (40, 25)
    slot = report.tables.slots[0]
    issued = other["packets_reserved"]
    assert (slot["packets_reserved"], slot["residue_packets"]) == (40 + issued, 25)


async def test_records_that_were_returned_may_be_reserved_again(run: Run) -> None:
    entries = (
        reserved(0, 20),
        returned(5, 20),
        reserved(5, 25, epoch=2),
        returned(25, 25, epoch=2),
    )
    assert await residue_of(run, *entries) == 0


@pytest.mark.parametrize(
    "entries",
    [
        (reserved(0, 20), reserved(19, 40, epoch=2)),
        (reserved(0, 20), reserved(21, 40)),
        (reserved(5, 20),),
        (reserved(0, 20), returned(10, 19)),
        (reserved(0, 5000),),
    ],
)
async def test_a_record_that_was_reserved_twice_or_skipped_breaks_the_audit(
    run: Run, entries: tuple[CursorEntry, ...]
) -> None:
    await run.play(count=5)
    await run.reserve(0, *entries)
    assert (await run.audit()).line["equations"] == ["tickets_reserved_once"]


async def test_a_long_cursor_log_is_read_whole(run: Run) -> None:
    entries = [reserved(0, 1)] + [reserved(1, 1, issued=1) for _ in range(600)]
    assert await residue_of(run, *entries, reserved(1, 9, issued=1)) == 8


@given(
    kind=st.sampled_from([RESERVED, RETURNED]),
    pod=st.integers(0, (1 << 16) - 1),
    epoch=st.integers(0, (1 << 32) - 1),
    span=st.tuples(*[st.integers(0, (1 << 64) - 1)] * 2).map(sorted),
    issued=st.integers(0, (1 << 64) - 1),
)
def test_a_cursor_entry_survives_its_codec(
    kind: int, pod: int, epoch: int, span: list[int], issued: int
) -> None:
    entry = CursorEntry(kind, pod, epoch, span[0], span[1], issued)
    assert parse_cursor(pack_cursor(entry)) == entry


@pytest.mark.parametrize(
    "value",
    [
        b"",
        pack_cursor(reserved(0, 1))[:-1],
        b"\x02" + pack_cursor(reserved(0, 1))[1:],
        pack_cursor(CursorEntry(3, 1, 1, 0, 1, 0)),
        pack_cursor(reserved(2, 1)),
    ],
)
def test_a_broken_cursor_entry_is_corrupt(value: bytes) -> None:
    with pytest.raises(Corrupt):
        parse_cursor(value)


@given(st.integers(0, (1 << 32) - 2), st.integers(0, 1 << 40), st.integers(0, 1 << 40))
def test_cursor_keys_sort_by_file_and_position(file: int, one: int, other: int) -> None:
    keys = [cursor_key(file, one), cursor_key(file, other)]
    assert (keys[0] < keys[1]) == (one < other)
    assert max(keys) < cursor_end(file) <= cursor_key(file + 1, 0)
