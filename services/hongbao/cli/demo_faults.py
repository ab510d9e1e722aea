"""Owns the faults that the demo's caller brings, and how long service stood still after each.

The demo breaks its own processes; stores that it does not run are broken by the caller's commands.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Final

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from hongbao.cli.demo_script import Event
from hongbao.cli.yaml_settings import read_yaml
from hongbao.client.acknowledged import AcknowledgedOpen
from hongbao.domain.errors import Rejected
from hongbao.domain.manifest import Manifest, PacketIndex

COMMAND_S_MAX: Final = 20.0
WATCHED_MS: Final = 10_000
"""A silence that begins later after a fault is not the fault's."""
BUSY_MS: Final = 1000
"""A shard is busy when it acknowledged an open in so long a time."""


class StoreFault(BaseModel):
    """Says what to run at which moment; it ends when the fault is there."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    slot: Annotated[int, Field(ge=1, le=64)]
    """Number of the slot in the timeline, from 1."""

    share: Annotated[float, Field(ge=0, lt=1)]
    """Of the slot that has passed."""

    text: Annotated[str, Field(min_length=1, max_length=80)]
    """What it is, for the report; the command's last line of output follows."""

    command: Annotated[tuple[str, ...], Field(min_length=1)]
    """Program and arguments; an exit status other than 0 fails the demo."""


def read_store_faults(path: Path, slots: int) -> list[StoreFault]:
    """Read a YAML list of faults. Raises Rejected with every problem."""
    document = read_yaml(path, field="store_faults")
    try:
        faults = TypeAdapter(list[StoreFault]).validate_python(document)
    except ValidationError as error:
        rows = [f"{path}: {_place(one['loc'])}: {one['msg']}" for one in error.errors()]
        raise Rejected("\n".join(rows), field="store_faults") from error
    for number, fault in enumerate(faults, 1):
        if fault.slot > slots:
            message = f"{path}: fault {number}: slot {fault.slot} of {slots} slots"
            raise Rejected(message, field="store_faults")
    return faults


def _place(loc: tuple[int | str, ...]) -> str:
    """Name a fault by its number from 1, as people count."""
    return " ".join(f"fault {one + 1}" if isinstance(one, int) else one for one in loc[:2])


def plan_store_events(faults: Iterable[StoreFault]) -> list[Event]:
    """Return the faults as events of the evening."""
    return [Event(one.slot - 1, one.share, "store", one.text, _run(one)) for one in faults]


def _run(fault: StoreFault) -> Callable[[], Awaitable[str]]:
    async def act() -> str:
        try:
            child = await asyncio.create_subprocess_exec(
                *fault.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
        except OSError as error:
            raise Rejected(f"{fault.command[0]}: {error}") from error
        try:
            async with asyncio.timeout(COMMAND_S_MAX):
                output, _ = await child.communicate()
        except TimeoutError:
            child.kill()
            raise Rejected(f"not done after {COMMAND_S_MAX:g} s") from None
        said = output.decode(errors="replace").strip().splitlines()[-1:]
        if child.returncode:
            raise Rejected(f"exit status {child.returncode}: {' '.join(said)}")
        return ": ".join([fault.text, *said])

    return act


def find_silence_s(
    acknowledged: Sequence[AcknowledgedOpen],
    manifests: Iterable[Manifest],
    at_ms: int,
    until_ms: int,
) -> float | None:
    """Return for how long after a fault one claims shard acknowledged nothing, the worst of all.

    What clients saw, retries included. Shards count that were busy when the fault came; one that
    never comes back was silent until `until_ms`, to which they all had work (the slot's end). None
    where no shard was busy.
    """
    until_ms = min(until_ms, at_ms + WATCHED_MS)
    longest_ms = None
    for times in _times_by_shard(acknowledged, manifests):
        if not any(at_ms - BUSY_MS <= one <= at_ms for one in times):
            continue
        since = [at_ms, *(one for one in times if at_ms < one)]
        ends = [one for one in since if one < until_ms]
        behind = since[len(ends)] if len(ends) < len(since) else until_ms
        gaps = [after - before for before, after in pairwise([*ends, behind])]
        longest_ms = max([longest_ms or 0, *gaps])
    return None if longest_ms is None else longest_ms / 1000


def _times_by_shard(
    acknowledged: Sequence[AcknowledgedOpen], manifests: Iterable[Manifest]
) -> list[list[int]]:
    manifests = tuple(manifests)
    batches = sorted(
        (one.serial_base, int(one.batch)) for each in manifests for one in each.batches
    )
    bases, numbers = (np.array(column, np.int64) for column in zip(*batches, strict=True))
    serials = np.array([one.packet for one in acknowledged], np.int64)
    times = np.array([one.at_ms for one in acknowledged], np.int64)
    batch = numbers[np.searchsorted(bases, serials, side="right") - 1]
    shards = PacketIndex(manifests).locate_many(batch, serials).claims_shard
    return [sorted(times[shards == shard].tolist()) for shard in np.unique(shards)]
