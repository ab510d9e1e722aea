"""Owns asking Coordination about epochs that the watch has not brought yet; bounded in rate."""

from collections.abc import Callable
from typing import Final

from hongbao.domain.errors import Transient
from hongbao.redeem.facts import Facts, epoch_key
from hongbao.shards.ports import Coordination


class EpochReader:
    """Reads `pods/<pod>/epoch` when a token names a higher epoch than the watch has shown."""

    def __init__(
        self,
        coordination: Coordination,
        facts: Facts,
        *,
        reads_per_s: int,
        monotonic_s: Callable[[], float],
    ) -> None:
        self._coordination: Final = coordination
        self._facts: Final = facts
        self._reads_per_s: Final = reads_per_s
        self._monotonic_s: Final = monotonic_s
        self._second_ends_s = 0.0
        self._reads = 0

    async def exists(self, pod: int, epoch: int) -> bool:
        """Return whether the pod has reached the epoch. Raises Transient past the rate."""
        now_s = self._monotonic_s()
        if now_s >= self._second_ends_s:
            self._second_ends_s, self._reads = now_s + 1, 0
        if self._reads >= self._reads_per_s:
            raise Transient(
                f"{self._reads_per_s} epochs were looked up in this second",
                retry_after_s=self._second_ends_s - now_s,
            )
        self._reads += 1
        found = await self._coordination.read(epoch_key(pod))
        if found.value:
            self._facts.apply(found.key, found.value)
        return self._facts.epochs.get(pod, -1) >= epoch
