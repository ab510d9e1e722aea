"""Owns how facts lie in etcd, and what this process has been shown of them; refuses any I/O.

A stored value is the fact's own bytes and one line behind them: `\\n#hb <stamp> <holder>`. The
stamp names the write, so that a write whose reply was lost is recognised when it is read back. A
value without that line, put there by hand, is taken as it is.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from hongbao.domain.errors import Rejected
from hongbao.proto.etcd.kv_pb2 import KeyValue
from hongbao.shards.ports import Versioned

SHOWN_KEYS_MAX: Final = 65_536
"""Past it, and past twice the living keys of the last sweep, what is known of deleted keys is
dropped: only a watch over a compaction needs it."""
_MARK: Final = b"\n#hb "


def stamped(value: bytes, stamp: str, holder: str = "") -> bytes:
    """Return a value as it is stored. Raises Rejected for a holder of more than one line."""
    if "\n" in holder:
        raise Rejected(f"holder {holder!r} has more than one line")
    return value + _MARK + f"{stamp} {holder}".encode()


def value_of(stored: bytes) -> bytes:
    """Return the fact's own bytes."""
    at = stored.rfind(_MARK)
    return stored if at < 0 else stored[:at]


def stamp_of(stored: bytes) -> str:
    """Return which write it was; empty when it was not ours."""
    return _line_of(stored)[0]


def holder_of(stored: bytes) -> str:
    """Return who holds the lease that the value belongs to."""
    return _line_of(stored)[1]


def _line_of(stored: bytes) -> tuple[str, str]:
    at = stored.rfind(_MARK)
    if at < 0:
        return "", ""
    stamp, _, holder = stored[at + len(_MARK) :].decode(errors="replace").partition(" ")
    return stamp, holder


def range_end_of(start: bytes) -> bytes:
    """Return the end of all keys that begin so (UTF-8 knows no byte 0xff); b"\\0" is no end."""
    return start[:-1] + bytes([start[-1] + 1]) if start else b"\0"


class Namespace:
    """Puts a prefix before our keys, so that many share a cluster."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix

    def key(self, key: str) -> bytes:
        """Return a key as etcd has it."""
        return f"{self._prefix}{key}".encode()

    def fact(self, kv: KeyValue) -> Versioned:
        """Return the fact; of a deleted key the value is empty."""
        key = kv.key.decode()[len(self._prefix) :]
        return Versioned(key, value_of(kv.value), kv.mod_revision)


@dataclass(slots=True)
class _Shown:
    since: int
    last: int
    """Newest revision at which it was shown alive."""
    gone: int | None = None


@dataclass(slots=True)
class Shown:
    """Remembers which keys this process was shown, and since and until which revision.

    When etcd has compacted the history that a watch still needed, a deletion cannot be read any
    more: it follows from a key that was shown and is not there.
    """

    _keys: dict[str, _Shown] = field(default_factory=dict)
    _keys_max: int = SHOWN_KEYS_MAX

    def there(self, fact: Versioned) -> Versioned:
        """Note that a key was shown alive; its deletion may still lie between two showings."""
        shown = self._keys.get(fact.key)
        if shown is None:
            self._keys[fact.key] = _Shown(fact.revision, fact.revision)
            self._bound()
        elif shown.gone is None or shown.gone < fact.revision:
            shown.gone = None
        shown = self._keys[fact.key]
        shown.since = min(shown.since, fact.revision)
        shown.last = max(shown.last, fact.revision)
        return fact

    def absent(self, key: str, revision: int) -> None:
        """Note that a key was shown to be absent at a revision.

        Reads and watches answer in any order: what was shown alive since has come back.
        """
        shown = self._keys.get(key)
        if shown is not None and shown.last < revision:
            shown.gone = revision if shown.gone is None else min(shown.gone, revision)

    def listed(self, prefix: str, there: Iterable[str], revision: int) -> None:
        """Note which keys of a prefix were there at a revision."""
        for key in self.keys(prefix) - set(there):
            self.absent(key, revision)

    def keys(self, prefix: str, revision: int | None = None) -> set[str]:
        """Return the shown keys of a prefix that were there at a revision, by default at any."""
        return {
            key
            for key, shown in self._keys.items()
            if key.startswith(prefix)
            and (
                revision is None
                or (shown.since <= revision and (shown.gone is None or revision < shown.gone))
            )
        }

    def _bound(self) -> None:
        if len(self._keys) > self._keys_max:
            self._keys = {key: shown for key, shown in self._keys.items() if shown.gone is None}
            # Twice what lives: each sweep is paid for by as many new keys.
            self._keys_max = max(SHOWN_KEYS_MAX, 2 * len(self._keys))


class WriteCounts:
    """Counts what this process asked etcd to write, by purpose: a key's first path segment.

    Kinds: txn, grant, revoke; keepalive is counted beside them and costs no write.
    """

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()

    def add(self, key: str, kind: str) -> None:
        """Count one attempt."""
        self._counts[key.partition("/")[0], kind] += 1

    def by_purpose(self) -> dict[tuple[str, str], int]:
        """Return the count of each (purpose, kind)."""
        return dict(self._counts)

    def written(self) -> int:
        """Return how many writes there were; keep-alives are none."""
        return sum(count for (_, kind), count in self._counts.items() if kind != "keepalive")
