"""Owns closing every claims log, whoever lives: no claim is written behind that (R36).

Living redeem processes close the logs before they acknowledge that the campaign is closed. What
nobody serves is taken over here: a process that is paused between looking at its lease and its
append is fenced by that, and one that wakes later and takes a shard reads that its log is closed.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from hongbao.domain.claim import CLOSING, closed_key
from hongbao.domain.errors import Fenced, Transient
from hongbao.redeem.machine import ClaimsMachine
from hongbao.redeem.service import PLANE
from hongbao.shards.block import ShardKey
from hongbao.shards.host import ShardHost
from hongbao.shards.member import Member
from hongbao.shards.ports import Coordination, LogStore
from hongbao.shards.tenure import Owners

LOOK_AGAIN_S: Final = 0.05


async def close_logs(
    coordination: Coordination,
    store: LogStore,
    shards: Sequence[int],
    *,
    process: str,
    nonces: Callable[[], bytes],
    monotonic_s: Callable[[], float],
) -> None:
    """Return once all logs are closed; shards that others hold are waited for.

    `process` names this caller among all processes, each call by another name.
    """
    if not await open_logs(store, shards):
        return
    owners = Owners(store, PLANE, lambda shard: ClaimsMachine(ShardKey(PLANE, shard)), nonces)
    member = Member(process, zone="", address="", role="closer")
    host = ShardHost(coordination, member, PLANE, shards, owners.serve, monotonic_s)
    running = asyncio.create_task(host.run())
    try:
        while still_open := await open_logs(store, shards):
            for shard in still_open:
                if owner := owners.find(PLANE, shard):
                    with suppress(Transient, Fenced):  # Ambiguous too: the key tells
                        await owner.submit(CLOSING)
            await asyncio.sleep(LOOK_AGAIN_S)
    finally:
        await host.stop()
        await running


async def open_logs(store: LogStore, shards: Sequence[int]) -> list[int]:
    """Return the shards whose logs are not closed yet."""
    return [shard for shard in shards if await store.get(closed_key(shard)) is None]
