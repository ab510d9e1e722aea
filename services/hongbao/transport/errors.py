"""Owns the one table from our exceptions to gRPC statuses; refuses to know who serves them.

Codes follow google.rpc.Code; details follow google.rpc.error_details (AIP-193). Classes of
outcome are those of R29: a logical failure is the caller's, a system failure is ours.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from google.protobuf import message as protobuf_message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from hongbao.domain import errors

ERROR_DOMAIN: Final = "hongbao.io"


class Outcome(IntEnum):
    """Is how a call ended, in the words of R29; `SHED` did no work (R25)."""

    OK = 0
    LOGICAL = 1
    SYSTEM = 2
    SHED = 3


@dataclass(frozen=True, slots=True)
class Failure:
    """Is a failed call as the wire carries it; `details` is a serialized google.rpc.Status."""

    code: int
    message: str
    details: bytes
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Row:
    """Is a row of the table; `message` replaces the exception's own where that is not public."""

    error: type[BaseException]
    code: int
    reason: str
    outcome: Outcome
    message: str | None = None


class DeadlineExceeded(errors.Transient):
    """Says that the caller's deadline passed before there was an answer."""


class Unimplemented(errors.Rejected):
    """Says that no such method is served here, or not in this encoding."""


# The first row whose class fits decides: subclasses stand before their parents.
TABLE: Final = (
    Row(
        errors.Unauthenticated,
        code_pb2.UNAUTHENTICATED,
        "UNAUTHENTICATED",
        Outcome.LOGICAL,
        "not authenticated",
    ),
    Row(errors.NotFound, code_pb2.NOT_FOUND, "NOT_FOUND", Outcome.LOGICAL),
    Row(errors.Exhausted, code_pb2.RESOURCE_EXHAUSTED, "LIMIT_PASSED", Outcome.LOGICAL),
    Row(Unimplemented, code_pb2.UNIMPLEMENTED, "UNIMPLEMENTED", Outcome.LOGICAL),
    Row(errors.Rejected, code_pb2.INVALID_ARGUMENT, "REJECTED", Outcome.LOGICAL),
    Row(protobuf_message.DecodeError, code_pb2.INVALID_ARGUMENT, "MALFORMED", Outcome.LOGICAL,
        "the message cannot be parsed"),
    # Not UNAVAILABLE: the gateway retries that, and a retry of shed work feeds the overload.
    Row(errors.Overloaded, code_pb2.RESOURCE_EXHAUSTED, "OVERLOADED", Outcome.SHED),
    Row(DeadlineExceeded, code_pb2.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", Outcome.SYSTEM),
    Row(TimeoutError, code_pb2.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", Outcome.SYSTEM,
        "the deadline has passed"),
    Row(errors.Transient, code_pb2.UNAVAILABLE, "TRANSIENT", Outcome.SYSTEM),
    Row(errors.Fenced, code_pb2.UNAVAILABLE, "OWNER_MOVED", Outcome.SYSTEM,
        "the shard has moved, repeat the call"),
    Row(errors.Corrupt, code_pb2.DATA_LOSS, "CORRUPT", Outcome.SYSTEM, "internal error"),
    Row(BaseException, code_pb2.INTERNAL, "INTERNAL", Outcome.SYSTEM, "internal error"),
)  # fmt: skip

# What a Fenced caller waits before it asks again: about the time a new owner is found in.
MOVED_RETRY_S: Final = 0.2


def row_of(error: BaseException) -> Row:
    """Return the row that decides how `error` is told to the caller."""
    return next(row for row in TABLE if isinstance(error, row.error))


def failure_of(error: BaseException) -> Failure:
    """Translate an exception to what the wire carries."""
    row = row_of(error)
    message = row.message if row.message is not None else str(error)
    status = status_pb2.Status(code=row.code, message=message)
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=row.reason, domain=ERROR_DOMAIN))
    if isinstance(error, errors.Rejected) and error.field:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=error.field, description=message
        )
        status.details.add().Pack(error_details_pb2.BadRequest(field_violations=[violation]))
    retry_after_s = retry_after(error)
    if retry_after_s is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(int(retry_after_s * 1e9))
        status.details.add().Pack(retry)
    return Failure(row.code, message, status.SerializeToString(), row.outcome)


def retry_after(error: BaseException) -> float | None:
    """Return after how many seconds a repeat makes sense; None when it never does."""
    if isinstance(error, DeadlineExceeded):
        return None
    if isinstance(error, errors.Transient):
        return error.retry_after_s
    return MOVED_RETRY_S if isinstance(error, errors.Fenced) else None
