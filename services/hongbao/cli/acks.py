"""Owns waiting until a changed document is effective on every living process that obeys it."""

import asyncio
import json
from collections.abc import Mapping
from typing import Final

from hongbao.domain.errors import Corrupt, Transient
from hongbao.shards.ports import Coordination

MEMBERS: Final = "lease/member/"
LOOK_AGAIN_S: Final = 0.05


async def wait_acked(
    coordination: Coordination,
    document: str,
    role: str,
    revision: int,
    wait_s: float,
    *,
    expected: bool = False,
) -> list[str]:
    """Wait until every living process of the role has acked; return their names.

    `expected`: processes of the role belong to a run that is up, so that none is a failure too: a
    process that is being restarted would come back. Raises Transient with those that have not
    acked when the time is over: the document stays changed.
    """
    waiting: list[str] = []
    try:
        async with asyncio.timeout(wait_s):
            while True:
                living = of_role(await read_living(coordination), role)
                facts = await coordination.read_prefix(f"acks/{document}/")
                acked = {
                    fact.key.rsplit("/", 1)[1]
                    for fact in facts
                    if json.loads(fact.value)["revision"] >= revision
                }
                waiting = [process for process in living if process not in acked]
                if not waiting and (living or not expected):
                    return living
                await asyncio.sleep(LOOK_AGAIN_S)
    except TimeoutError:
        raise Transient(
            f"{document} is changed, but after {wait_s:g} s not yet effective on: "
            f"{', '.join(waiting) or f'any {role} process, none lives'}"
        ) from None


async def read_living(coordination: Coordination) -> dict[str, str]:
    """Return the role of every living process, by name."""
    roles = {}
    for fact in await coordination.read_prefix(MEMBERS):
        try:
            roles[fact.key.removeprefix(MEMBERS)] = str(json.loads(fact.value)["role"])
        except (ValueError, KeyError, TypeError) as error:
            raise Corrupt(f"{fact.key} does not name a role") from error
    return roles


def of_role(roles: Mapping[str, str], role: str) -> list[str]:
    """Return the processes of one role, sorted."""
    return sorted(process for process, its_role in roles.items() if its_role == role)
