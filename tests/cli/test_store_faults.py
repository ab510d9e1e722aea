"""Facts about the faults of stores that a demo's caller brings (issue 4)."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import yaml
from hongbao.cli.demo_close import find_unproved
from hongbao.cli.demo_faults import find_silence_s, plan_store_events, read_store_faults
from hongbao.cli.demo_script import EventLog, play
from hongbao.cli.rain import Rain
from hongbao.client.acknowledged import AcknowledgedOpen
from hongbao.domain.campaign import Slot
from hongbao.domain.errors import Rejected
from hongbao.domain.ids import SlotNumber
from hongbao.domain.manifest import PacketIndex
from hongbao.domain.timeline import Timeline

from tests.minted import MintedCampaign, tiny_campaign

GOOD = "- {slot: 1, share: 0.5, text: a store dies, command: [kill, it]}\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "faults.yaml"
    path.write_text(text)
    return path


def test_a_fault_becomes_an_event_of_its_slot(tmp_path: Path) -> None:
    (event,) = plan_store_events(read_store_faults(write(tmp_path, GOOD), 2))
    assert (event.slot, event.share, event.kind) == (0, 0.5, "store")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (GOOD + "- {slot: 3, share: 0, text: x, command: [x]}\n", "fault 2: slot 3 of 2 slots"),
        ("- {slot: 0, share: 0, text: x, command: [x]}\n", "fault 1 slot"),
        (GOOD + "- {slot: 1, share: 1, text: x, command: [x]}\n", "fault 2 share"),
        ("- {slot: 1, share: 0, text: x, command: []}\n", "fault 1 command"),
        ("- {slot: 1, share: 0, text: x, command: [x], at: 3}\n", "fault 1 at"),
        ("slot: 1\n", "valid list"),
        ("[", "not YAML"),
        ("[" * 3000, "nested deeper"),
        (GOOD.replace("share: 0.5", "slot: 2"), ":1: 0.slot: the key is there twice"),
    ],
)
def test_a_wrong_fault_is_refused_by_its_number(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(Rejected, match=r"faults\.yaml") as refused:
        read_store_faults(write(tmp_path, text), 2)
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("program", "failed", "says"),
    [
        ("print('one'); print('leader 2')", False, "a store dies: leader 2"),
        ("print('no such store'); exit(3)", True, "exit status 3: no such store"),
    ],
)
async def test_what_the_command_says_is_told_and_its_failure_fails_the_demo(
    tmp_path: Path, program: str, failed: bool, says: str
) -> None:
    fault = {"slot": 1, "share": 0, "text": "a store dies"}
    text = yaml.safe_dump([fault | {"command": [sys.executable, "-c", program]}])
    events = plan_store_events(read_store_faults(write(tmp_path, text), 1))
    timeline = Timeline((Slot(SlotNumber(1), "one", 0, 1),))
    up = cast(Rain, SimpleNamespace(timeline=timeline, clock=SimpleNamespace(wall_ms=lambda: 5)))
    told = EventLog(tmp_path / "told.jsonl")
    await play(up, events, told)
    assert says in told.lines[0]
    assert bool(told.failed) is failed


def opens(minted: MintedCampaign, times: dict[int, list[int]]) -> list[AcknowledgedOpen]:
    """Return one open of each claims shard at each of its times."""
    index, made = PacketIndex([minted.manifest]), []
    for shard, moments in times.items():
        serial = next(
            base
            for batch in minted.manifest.batches
            for base in range(batch.serial_base, batch.serial_base + batch.count)
            if (place := index.locate(batch.batch, base)) and place.claims_shard == shard
        )
        made += [AcknowledgedOpen(serial, 1, 1, at_ms) for at_ms in moments]
    return made


STEADY = list(range(0, 9000, 50))


@pytest.mark.parametrize(
    ("times", "at_ms", "until_ms", "silence_s"),
    [
        ({0: STEADY, 1: [950, 1000, 3400, *range(3450, 9000, 50)]}, 1100, 8000, 2.3),
        ({0: STEADY, 1: [950, 1000, 3400, *range(3450, 9000, 50)]}, 5000, 8000, 0.05),
        ({0: STEADY, 1: [950, 1000]}, 1100, 8000, 6.9),  # it never comes back
        ({0: STEADY, 1: [950, 1000, 9900]}, 1100, 3000, 8.8),  # it comes back in the next slot
        ({0: STEADY, 1: [950, 1000]}, 4000, 8000, 0.05),  # it was idle long before
        ({0: [*range(0, 12_000, 50), 40_000]}, 1000, 60_000, 0.05),  # a silence long afterwards
    ],
)
def test_silence_is_that_of_the_busy_shard_which_was_down_longest(
    tmp_path: Path, times: dict[int, list[int]], at_ms: int, until_ms: int, silence_s: float
) -> None:
    minted = tiny_campaign(tmp_path)
    found = find_silence_s(opens(minted, times), [minted.manifest], at_ms, until_ms)
    assert found == pytest.approx(silence_s)


def test_a_fault_that_hits_nobody_has_no_silence(tmp_path: Path) -> None:
    minted = tiny_campaign(tmp_path)
    assert find_silence_s(opens(minted, {0: STEADY}), [minted.manifest], 20_000, 30_000) is None


@pytest.mark.parametrize(
    ("back_s", "says"),
    [
        (5.1, "service was back only 5.1 s after a fault of a store"),
        (None, "when a store was broken nothing was opened, or too late in its slot"),
    ],
)
def test_service_that_is_not_back_or_was_not_there_proves_nothing(
    back_s: float | None, says: str
) -> None:
    line = {"packets_opened": 7, "equations": "hold", "service_back_s_max": back_s}
    assert find_unproved(line, 0, 7, []) == [says]
    assert find_unproved(line | {"service_back_s_max": 5.0}, 0, 7, []) == []
