"""What a process logs of calls that it repeats: no flood while a backend is down."""

import stamina.instrumentation
from hongbao.cli.process import tell_retries
from structlog.testing import capture_logs


def retried(number: int) -> stamina.instrumentation.RetryDetails:
    return stamina.instrumentation.RetryDetails(
        name="pay",
        args=("a secret",),
        kwargs={},
        retry_num=number,
        wait_for=0.1,
        waited_so_far=0.0,
        caused_by=OSError("no route"),
    )


def test_calls_that_are_repeated_are_told_once_a_second_with_their_count() -> None:
    now_s = 7.0
    tell = tell_retries(lambda: now_s)
    with capture_logs() as logs:
        for number in range(1, 51):
            tell(retried(number))
        now_s += 1.0
        tell(retried(51))
    assert logs == [
        {
            "event": "call_repeated",
            "log_level": "warning",
            "reason": "OSError('no route')",
            "retry": retry,
            "suppressed": suppressed,
        }
        for retry, suppressed in ((1, 0), (51, 49))
    ]
