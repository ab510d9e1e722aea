"""Owns the file of acknowledged opens, the client's own proof of what it was promised.

JSON lines, one per acknowledged open, in the order of the answers:
    {"packet": serial, "user": user id, "amount_fen": amount, "at_ms": wall time of the answer}
The demo compares it with the ledger: an acknowledged open that is not in it is a lost claim.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO


@dataclass(frozen=True, slots=True)
class AcknowledgedOpen:
    """Is one promise: this user has this amount of this packet."""

    packet: int
    user: int
    amount_fen: int
    at_ms: int


class AcknowledgedFile:
    """Appends acknowledged opens; lines are written whole and flushed in groups."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: BinaryIO = path.open("ab")
        self._lines: list[str] = []

    def add(self, packet: int, user: int, amount_fen: int, at_ms: int) -> None:
        self._lines.append(
            f'{{"packet": {packet}, "user": {user}, '
            f'"amount_fen": {amount_fen}, "at_ms": {at_ms}}}\n'
        )

    def flush(self) -> None:
        if self._lines:
            self._file.write("".join(self._lines).encode())
            self._file.flush()
            self._lines.clear()

    def close(self) -> None:
        self.flush()
        self._file.close()


def read_acknowledged(path: Path) -> Iterator[AcknowledgedOpen]:
    """Yield the promises of a file; a last line that was cut by a kill is left out."""
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield AcknowledgedOpen(**json.loads(line))
