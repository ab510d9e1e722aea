"""Proves that many equal failures make few lines, and none is lost from the count."""

from hongbao.domain.errors import Corrupt, Transient
from hongbao.transport.errors import failure_of
from hongbao.transport.failure_log import FailureLog
from structlog.testing import capture_logs

OPEN, SHAKE = "/hongbao.v1.Redeem/Open", "/hongbao.v1.Access/Shake"


def test_a_second_has_one_line_for_each_method_and_code() -> None:
    failures = FailureLog()
    with capture_logs() as lines:
        for call in range(4000):
            for path in (OPEN, SHAKE):
                error = Transient("moving") if call % 2 else Corrupt("broken")
                failures.write(path, failure_of(error), error, 100.0 + call / 1000)
    counts = [line["suppressed"] for line in lines if line["method"] == OPEN]
    assert len(counts) == 2 * 4
    assert counts == [0, 0, 499, 499, 499, 499, 499, 499]
    assert len(lines) == 2 * len(counts)


def test_a_bug_brings_its_traceback() -> None:
    error = ZeroDivisionError("bug")
    with capture_logs() as lines:
        FailureLog().write(OPEN, failure_of(error), error, 1.0)
    assert lines[0]["log_level"] == "error"
    assert lines[0]["exc_info"] is error
