"""Facts about an access process whose pod was started elsewhere."""

import asyncio

from hongbao.cli.role_access import EXIT_SUPERSEDED, leave_when_superseded
from hongbao.domain.errors import Transient

from tests.waiting import LIMIT_S


class Pod:
    """Is a pod that writes down what is done to it."""

    def __init__(self, *, drains: bool = True) -> None:
        self.superseded = False
        self.done: list[str | int] = []
        self._drains = drains

    async def drain(self) -> None:
        self.done.append("drained")
        if not self._drains:
            raise Transient("no store")


async def test_a_superseded_pod_drains_and_ends_its_process_with_a_failure() -> None:
    pod = Pod()
    leaving = asyncio.create_task(leave_when_superseded(pod, pod.done.append))
    await asyncio.sleep(0)
    assert pod.done == []
    pod.superseded = True
    await asyncio.wait_for(leaving, LIMIT_S)
    assert pod.done == ["drained", EXIT_SUPERSEDED]
    assert EXIT_SUPERSEDED != 0


async def test_a_superseded_pod_that_cannot_drain_ends_all_the_same() -> None:
    pod = Pod(drains=False)
    pod.superseded = True
    await asyncio.wait_for(leave_when_superseded(pod, pod.done.append), LIMIT_S)
    assert pod.done == ["drained", EXIT_SUPERSEDED]
