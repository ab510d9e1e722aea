"""Owns the small tree of exceptions; refuses to know how any edge renders them.

Ordinary outcomes (nothing won, already opened) are return values, never exceptions.
"""


class HongbaoError(Exception):
    """Is the root, so that an edge can translate once by one table."""


class Rejected(HongbaoError):
    """Says that the caller's input is wrong; nothing was changed and a retry is pointless."""

    def __init__(self, message: str, *, field: str = "") -> None:
        super().__init__(message)
        self.field = field


class Unauthenticated(Rejected):
    """Says that a session, JWT or token is not good; one generic message for every cause."""


class NotFound(Rejected):
    """Says that what the caller named does not exist."""


class Exhausted(Rejected):
    """Says that a limit of size or number was passed."""


class Transient(HongbaoError):
    """Says that the system could not do it now; the same call may be repeated safely."""

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Overloaded(Transient):
    """Says that the process shed the call before it did any work."""


class Ambiguous(Transient):
    """Says that a write may or may not have happened: read it back before deciding."""


class Fenced(HongbaoError):
    """Says that another writer owns the shard now: stop writing at once."""


class Corrupt(HongbaoError):
    """Says that stored data contradicts its own checks: stop and page."""
