"""Owns the decision which calls a process that is behind does not take (R25)."""

from hongbao.domain.errors import Overloaded


class Admission:
    """Admits everything for now."""

    shedding = False

    def observe(self, priority: int, waited_s: float) -> None:
        """Take note of one call."""

    def check(self, priority: int, user: int | None) -> None:
        """Raise Overloaded when the call must be shed."""
        raise Overloaded("the process is behind")
