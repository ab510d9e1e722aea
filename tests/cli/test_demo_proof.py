"""Facts about when a demo has shown something."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hongbao.cli.demo_close import find_unproved
from hongbao.cli.demo_script import Event, EventLog, play
from hongbao.cli.rain import Rain
from hongbao.domain.campaign import Slot
from hongbao.domain.errors import Transient
from hongbao.domain.ids import SlotNumber
from hongbao.domain.timeline import Timeline

GOOD: dict[str, Any] = {"packets_opened": 7, "equations": "hold"}


def test_an_evening_with_opened_packets_is_proved() -> None:
    assert find_unproved(GOOD, 0, 7, []) == []


@pytest.mark.parametrize(
    ("line", "status", "promises", "failed", "says"),
    [
        (GOOD, 1, 7, [], "status 1"),
        (GOOD, -9, 7, [], "status -9"),
        (GOOD, None, 7, [], "did not end"),
        (GOOD, 0, None, [], "no file of acknowledged opens"),
        (GOOD, 0, 0, [], "no client saw"),
        (GOOD | {"packets_opened": 0}, 0, 7, [], "no packet was opened"),
        (GOOD, 0, 7, ["key 7: failed: late"], "key 7: failed: late"),
    ],
)
def test_an_evening_that_lacks_its_stakes_is_not(
    line: dict[str, Any], status: int | None, promises: int | None, failed: list[str], says: str
) -> None:
    problems = find_unproved(line, status, promises, failed)
    assert len(problems) == 1
    assert says in problems[0]


async def test_an_event_that_fails_is_remembered(tmp_path: Path) -> None:
    async def act() -> str:
        raise Transient("late")

    timeline = Timeline((Slot(SlotNumber(1), "one", 0, 1),))
    up = cast(Rain, SimpleNamespace(timeline=timeline, clock=SimpleNamespace(wall_ms=lambda: 5)))
    told = EventLog(tmp_path / "faults.jsonl")
    await play(up, [Event(0, 0.0, "key", "key 7", act)], told)
    assert told.failed == ["key 7: failed: late"]
    assert json.loads((tmp_path / "faults.jsonl").read_text())["text"] == told.failed[0]
