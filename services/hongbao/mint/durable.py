"""Owns how an output appears: whole and durable under its name, or not at all."""

import os
from pathlib import Path


def publish(partial: Path, final: Path) -> None:
    """Give a finished, synced file its name, durably. Safe to repeat."""
    final.parent.mkdir(parents=True, exist_ok=True)
    os.replace(partial, final)
    sync_folder(final.parent)


def publish_bytes(data: bytes, partial: Path, final: Path) -> None:
    """Write small data under its name, durably."""
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    publish(partial, final)


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
