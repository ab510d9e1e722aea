"""The one table of errors."""

from google.rpc import code_pb2, error_details_pb2, status_pb2
from hongbao.domain.errors import Corrupt, Overloaded, Rejected, Transient
from hongbao.transport.errors import TABLE, Outcome, failure_of


def test_no_row_is_hidden_by_an_earlier_one() -> None:
    rows = [row.error for row in TABLE]
    for place, row in enumerate(rows):
        assert not any(issubclass(row, earlier) for earlier in rows[:place])


def test_shed_work_is_not_unavailable_because_that_is_retried() -> None:
    """A retry of shed work feeds the overload (R25, R27)."""
    failure = failure_of(Overloaded("behind"))
    assert (failure.code, failure.outcome) == (code_pb2.RESOURCE_EXHAUSTED, Outcome.SHED)


def test_logical_and_system_failures_are_told_apart() -> None:
    """R29."""
    assert failure_of(Rejected("no")).outcome is Outcome.LOGICAL
    assert failure_of(Transient("later")).outcome is Outcome.SYSTEM
    assert failure_of(Corrupt("block 7")).outcome is Outcome.SYSTEM
    assert failure_of(KeyError("x")).outcome is Outcome.SYSTEM


def test_what_is_inside_is_not_told() -> None:
    for error in (Corrupt("block 7"), KeyError("block 7"), TimeoutError("block 7")):
        failure = failure_of(error)
        assert "block" not in failure.message
        assert b"block" not in failure.details


def test_a_retry_time_is_carried_to_the_millisecond() -> None:
    status = status_pb2.Status.FromString(failure_of(Transient("x", retry_after_s=0.125)).details)
    retry = error_details_pb2.RetryInfo()
    assert status.details[1].Unpack(retry)
    assert retry.retry_delay.ToMilliseconds() == 125
