"""Owners with one planted bug each; the simulation must find every one of them.

They are subclasses, so that no branch for them exists in the runtime.
"""

from hongbao.shards.owner import Owner, _Round
from hongbao.shards.replay import Replay


class SkipsEpochBlock(Owner):
    """Trusts its lease to keep the last owner away."""

    async def _fence(self, replay: Replay) -> None:
        self.position = replay.position


class RepliesBeforeDurable(Owner):
    """Gives results out while their block is still on its way."""

    async def _commit(self, decided: _Round) -> None:
        self._release(decided)
        await super()._commit(decided)


class TrustsAnyReadBack(Owner):
    """Takes whatever it reads back at its position for its own block: the stale read-back."""

    async def _written_by_us(self, position: int) -> bool | None:
        return True if await super()._written_by_us(position) is not None else None


PLANTED: dict[str, type[Owner]] = {
    "skipped-epoch-block": SkipsEpochBlock,
    "reply-before-durable": RepliesBeforeDurable,
    "stale-read-back": TrustsAnyReadBack,
}
