"""Owns how a problem in an input file is told; refuses to know what any file means."""

from dataclasses import dataclass, field
from typing import Final

PROBLEMS_MAX: Final = 1000  # a person reads no more; the rest is counted


@dataclass(frozen=True, order=True, slots=True)
class Problem:
    """Is one thing to correct: where it stands, and what is wrong.

    `row` is the line as an editor counts it (0: the whole file), `column` the name of the
    column or key ("": the whole row). Without a file, `column` names the object.
    """

    file: str
    row: int
    column: str
    message: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.row}" if self.row else self.file
        return ": ".join(part for part in (place, self.column, self.message) if part)


@dataclass(slots=True)
class Problems:
    """Gathers problems, so that all are told at once; keeps at most PROBLEMS_MAX."""

    found: list[Problem] = field(default_factory=list)
    count: int = 0

    def add(self, file: str, row: int, column: str, message: str) -> None:
        self.count += 1
        if not column.isprintable():
            column = ascii(column)  # a key or header of a bad file must not drive a terminal
        if len(self.found) < PROBLEMS_MAX:
            self.found.append(Problem(file, row, column, message))

    def told(self) -> list[Problem]:
        """Return them by place, with a last line when there were too many to keep."""
        left_out = self.count - len(self.found)
        more = [Problem("", 0, "", f"and {left_out} more problems")] if left_out else []
        return sorted(self.found) + more
