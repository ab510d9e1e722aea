"""Proves that calls end at their deadlines, and nothing else does."""

import asyncio
from time import monotonic

import pytest
from hongbao.transport.deadlines import TICK_S, Deadlines

from tests.waiting import LIMIT_S

FOR_EVER_S = 3600.0
TRIES_MAX = 50


async def answer_after(wait_s: float) -> str:
    await asyncio.sleep(wait_s)
    return "answer"


async def test_each_call_has_its_own_deadline() -> None:
    deadlines = Deadlines()
    began_s = monotonic()
    calls = [
        deadlines.run(answer_after(wait_s), began_s + limit_s)
        for wait_s, limit_s in ((FOR_EVER_S, 0.05), (0.1, FOR_EVER_S), (FOR_EVER_S, 0.02))
    ]
    ends = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), LIMIT_S)
    assert ends[1] == "answer"
    assert isinstance(ends[0], TimeoutError)
    assert isinstance(ends[2], TimeoutError)


async def test_a_deadline_is_never_early_and_hardly_late() -> None:
    """Late a few times says that the machine was busy, late each time that deadlines are."""
    deadlines = Deadlines()
    for limit_s in (0.001, 0.015, 0.04):
        late_s = [await overrun_s(deadlines, limit_s)]
        while min(late_s) >= 5 * TICK_S and len(late_s) < TRIES_MAX:
            late_s.append(await overrun_s(deadlines, limit_s))
        assert min(late_s) < 5 * TICK_S


async def overrun_s(deadlines: Deadlines, limit_s: float) -> float:
    """Return for how long a call ran on behind its deadline."""
    began_s = monotonic()
    with pytest.raises(TimeoutError):
        await deadlines.run(answer_after(FOR_EVER_S), began_s + limit_s)
    took_s = monotonic() - began_s
    assert took_s >= limit_s
    return took_s - limit_s


async def test_a_deadline_that_has_passed_ends_the_call_too() -> None:
    deadlines = Deadlines()
    for _ in range(2):
        with pytest.raises(TimeoutError):
            await deadlines.run(answer_after(LIMIT_S), monotonic() - 1.0)
        await deadlines.run(answer_after(0.03), monotonic() + FOR_EVER_S)  # ticks are under way now


async def test_a_caller_that_goes_away_is_no_timeout() -> None:
    deadlines = Deadlines()
    call = asyncio.create_task(deadlines.run(answer_after(FOR_EVER_S), monotonic() + FOR_EVER_S))
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call


async def test_errors_come_through_and_the_task_goes_on_after_a_timeout() -> None:
    deadlines = Deadlines()

    async def break_down() -> None:
        raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011  the handler's own
        await deadlines.run(break_down(), monotonic() + FOR_EVER_S)
    with pytest.raises(TimeoutError):
        await deadlines.run(answer_after(LIMIT_S), monotonic())
    await asyncio.sleep(2 * TICK_S)
    task = asyncio.current_task()
    assert task is not None
    assert not task.cancelling()
