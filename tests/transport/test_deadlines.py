"""Proves that calls end at their deadlines, and nothing else does."""

import asyncio
from time import monotonic

import pytest
from hongbao.transport.deadlines import TICK_S, Deadlines


async def answer_after(wait_s: float) -> str:
    await asyncio.sleep(wait_s)
    return "answer"


async def test_each_call_has_its_own_deadline() -> None:
    deadlines = Deadlines()
    began_s = monotonic()
    calls = [deadlines.run(answer_after(0.1), began_s + limit_s) for limit_s in (0.05, 9.0, 0.02)]
    ends = await asyncio.gather(*calls, return_exceptions=True)
    assert ends[1] == "answer"
    assert isinstance(ends[0], TimeoutError)
    assert isinstance(ends[2], TimeoutError)
    assert monotonic() - began_s < 0.5


async def test_a_deadline_is_never_early_and_hardly_late() -> None:
    deadlines = Deadlines()
    for limit_s in (0.001, 0.015, 0.04):
        began_s = monotonic()
        with pytest.raises(TimeoutError):
            await deadlines.run(answer_after(9.0), began_s + limit_s)
        assert limit_s <= monotonic() - began_s < limit_s + 5 * TICK_S


async def test_a_deadline_that_has_passed_ends_the_call_too() -> None:
    deadlines = Deadlines()
    for _ in range(2):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(deadlines.run(answer_after(9.0), monotonic() - 1.0), 1.0)
        await deadlines.run(answer_after(0.03), monotonic() + 9.0)  # ticks are under way now


async def test_a_caller_that_goes_away_is_no_timeout() -> None:
    deadlines = Deadlines()
    call = asyncio.create_task(deadlines.run(answer_after(9.0), monotonic() + 9.0))
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call


async def test_errors_come_through_and_the_task_goes_on_after_a_timeout() -> None:
    deadlines = Deadlines()

    async def break_down() -> None:
        raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011  the handler's own
        await deadlines.run(break_down(), monotonic() + 9.0)
    with pytest.raises(TimeoutError):
        await deadlines.run(answer_after(9.0), monotonic())
    await asyncio.sleep(2 * TICK_S)
    task = asyncio.current_task()
    assert task is not None
    assert not task.cancelling()
