"""Owns the claim tokens that a client has won and not yet opened; a file keeps them over a crash.

JSON lines: {"won": token in hex} when a token comes, {"done": token} once its open has a
definite answer. A token is money: it is written before the shake is reported.
"""

import json
import os
from pathlib import Path


class TokenBox:
    """Remembers unopened claim tokens; without a path, only in memory."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._waiting: dict[bytes, None] = {}
        if path is not None and path.exists():
            self._load(path)

    @property
    def waiting(self) -> list[bytes]:
        """Return the tokens without a definite answer, oldest first."""
        return list(self._waiting)

    def won(self, token: bytes) -> None:
        self._waiting[token] = None
        self._append({"won": token.hex()})

    def done(self, token: bytes) -> None:
        if self._waiting.pop(token, token) is None:
            self._append({"done": token.hex()})

    def _append(self, entry: dict[str, str]) -> None:
        if self._path is None:
            return
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.write(descriptor, json.dumps(entry).encode() + b"\n")
        finally:
            os.close(descriptor)

    def _load(self, path: Path) -> None:
        for line in path.read_bytes().splitlines(keepends=True):
            if not line.endswith(b"\n"):
                break  # cut by a crash: the shake was never reported
            entry = json.loads(line)
            if "won" in entry:
                self._waiting[bytes.fromhex(entry["won"])] = None
            else:
                self._waiting.pop(bytes.fromhex(entry["done"]), None)
