"""Owns how the processes of a run know of one another: the lease `member/<process>`."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Final

import structlog

from hongbao.domain.errors import Corrupt
from hongbao.shards.lease import HeldLease
from hongbao.shards.ports import Coordination

AGAIN_S: Final = 0.2
"""Wait before a membership that was lost, or not got, is asked for again."""

log = structlog.get_logger()


@dataclass(frozen=True)
class Member:
    """Is what a process tells the others in its leases."""

    process: str
    zone: str
    address: str
    role: str

    def to_json(self) -> bytes:
        return json.dumps(self.__dict__, sort_keys=True).encode()

    @classmethod
    def from_json(cls, data: bytes) -> "Member":
        """Read what a process wrote, of whatever version: fields come and go. Raises Corrupt."""
        try:
            shape = json.loads(data)
        except ValueError as error:
            raise Corrupt(f"member document of {len(data)} bytes: {error}") from None
        if not isinstance(shape, dict):
            raise Corrupt(f"member document of {len(data)} bytes: no object")
        return cls(**{field.name: str(shape.get(field.name, "")) for field in fields(cls)})


async def keep_member(
    coordination: Coordination, member: Member, *, ttl_s: float, monotonic_s: Callable[[], float]
) -> None:
    """Be seen as alive until cancelled; a membership that was lost is taken anew.

    The holder is the process, not its incarnation: one that starts again takes its membership
    over at once, so it is never missed between two lives.
    """
    held = None
    try:
        while True:
            try:
                held = await HeldLease.acquire(
                    coordination,
                    f"member/{member.process}",
                    member.process,
                    ttl_s=ttl_s,
                    value=member.to_json(),
                    monotonic_s=monotonic_s,
                )
                if held is not None:
                    await held.keep()
                    log.warning("member_lease_lost", member=member.process)
            except Exception as error:  # outermost level of a loop: whoever lives must be seen
                log.warning("member_lease_unknown", member=member.process, error=repr(error))
            await asyncio.sleep(AGAIN_S)
    finally:
        if held is not None:
            await held.release()
