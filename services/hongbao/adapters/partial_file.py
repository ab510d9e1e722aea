"""Owns a file on its way to its name: it appears whole or not at all."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

READABLE: Final = 0o644


@contextlib.contextmanager
def partial_file(final: Path) -> Iterator[Path]:
    """Yield a file beside the final one that nobody else has; it does not stay."""
    handle, name = tempfile.mkstemp(prefix=f".{final.name}.", dir=final.parent)
    os.fchmod(handle, READABLE)  # mkstemp's mode keeps out the roles that run as other users
    os.close(handle)
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)
