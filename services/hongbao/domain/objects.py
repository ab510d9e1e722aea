"""Owns the port to the object store that holds ticket files, tables and manifests."""

from pathlib import Path
from typing import Protocol


class ObjectStore(Protocol):
    """Keeps immutable objects by name (slash-separated, no leading slash)."""

    async def get(self, name: str) -> bytes:
        """Return the whole object. Raises NotFound."""

    async def fetch(self, name: str, path: Path) -> None:
        """Stream the object into a local file, which appears whole or not at all."""

    async def put_new(self, name: str, data: bytes) -> None:
        """Create the object; the same bytes again are a no-op, others raise Rejected."""

    async def names(self, prefix: str) -> list[str]:
        """Return the names under a prefix, sorted."""
