"""Owns the port to the object store that holds ticket files, tables and manifests."""

from pathlib import Path
from typing import Protocol


class ObjectStore(Protocol):
    """Keeps immutable objects by name (slash-separated, no leading slash).

    Every call raises Transient when the store cannot be reached. An object that was created is
    durable and never changes.
    """

    async def get(self, name: str) -> bytes:
        """Return the whole object. Raises NotFound, and Corrupt where the store keeps a hash."""

    async def fetch(self, name: str, path: Path) -> None:
        """Stream the object into a local file, which appears whole or not at all.

        Raises what `get` raises.
        """

    async def put_new(self, name: str, data: bytes) -> None:
        """Create the object; the same bytes again are a no-op, others raise Rejected.

        Raises Ambiguous when even reading back does not tell; the same call may be repeated.
        """

    async def put_file_new(self, name: str, path: Path) -> None:
        """Create the object from a file in constant memory; else like `put_new`.

        The file must not change meanwhile. Raises Exhausted when it is too large for the store.
        """

    async def names(self, prefix: str) -> list[str]:
        """Return the names below a prefix of whole segments, sorted; empty: all names."""
