"""Owns a ledger in one process's memory, for the simulation and the contract suite."""

import functools
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Concatenate, ParamSpec, TypeVar

from hongbao.domain.errors import Fenced
from hongbao.settle.latency import LatencyCount, count_latency
from hongbao.settle.ports import AccountKind, Posted, Posting, Quarantined, Transfer, TransferState

P = ParamSpec("P")
T = TypeVar("T")


def _atomic(
    method: Callable[Concatenate["MemoryLedger", P], T],
) -> Callable[Concatenate["MemoryLedger", P], T]:
    """Let one thread at a time into the ledger: settler and payout call from their own."""

    @functools.wraps(method)
    def alone(self: "MemoryLedger", /, *arguments: P.args, **named: P.kwargs) -> T:
        with self._lock:
            return method(self, *arguments, **named)

    return alone


@dataclass
class MemoryLedger:
    """Is a settle.ports.Ledger; every method is atomic."""

    transfers: dict[int, Transfer] = field(default_factory=dict)
    states: dict[int, TransferState] = field(default_factory=dict)
    quarantine: dict[tuple[int, int, int], Quarantined] = field(default_factory=dict)
    positions: dict[int, int] = field(default_factory=dict)
    debited_fen: Counter[tuple[int, int]] = field(default_factory=Counter)  # by (kind, owner)
    credited_fen: Counter[tuple[int, int]] = field(default_factory=Counter)
    latency: list[LatencyCount] = field(default_factory=list)
    closed: bool = False

    def __post_init__(self) -> None:
        self._shards: dict[int, int] = {}
        self._lock = threading.Lock()

    def position(self, shard: int) -> int:
        return self.positions.get(shard, 0)

    @_atomic
    def post(self, posting: Posting) -> Posted:
        if self.position(posting.shard) != posting.start:
            raise Fenced(f"claims/{posting.shard}: the ledger is not at block {posting.start}")
        if posting.transfers and self.closed:
            return Posted.CLOSED
        serials = [transfer.serial for transfer in posting.transfers]
        if len(set(serials)) < len(serials) or not self.transfers.keys().isdisjoint(serials):
            return Posted.REPEATED
        self.positions[posting.shard] = posting.end
        for transfer in posting.transfers:
            self.transfers[transfer.serial] = transfer
            self.states[transfer.serial] = posting.state
            self._shards[transfer.serial] = posting.shard
        for row in posting.quarantined:
            self.quarantine.setdefault((row.shard, row.position, row.entry), row)
        if posting.state is TransferState.CREDITED:
            self._book(posting.transfers, posting.posted_at_ms)
        return Posted.POSTED

    @_atomic
    def find_transfers(self, serials: Sequence[int]) -> list[Transfer]:
        return [self.transfers[serial] for serial in serials if serial in self.transfers]

    @_atomic
    def pending(self, shard: int, limit: int, behind: Transfer | None = None) -> list[Transfer]:
        found = [
            transfer
            for serial, transfer in self.transfers.items()
            if self.states[serial] is TransferState.PENDING and self._shards[serial] == shard
        ]
        if behind is not None:
            found = [one for one in found if _payout_order(one) > _payout_order(behind)]
        return sorted(found, key=_payout_order)[:limit]

    @_atomic
    def credit(self, shard: int, transfers: Sequence[Transfer], at_ms: int) -> None:
        pending = [one for one in transfers if self.states[one.serial] is TransferState.PENDING]
        for transfer in pending:
            self.states[transfer.serial] = TransferState.CREDITED
        self._book(pending, at_ms)

    @_atomic
    def refuse(self, transfer: Transfer, quarantined: Quarantined, at_ms: int) -> None:
        if self.states[transfer.serial] is TransferState.PENDING:
            self.states[transfer.serial] = TransferState.REFUSED
            key = (quarantined.shard, quarantined.position, quarantined.entry)
            self.quarantine.setdefault(key, quarantined)

    def _book(self, transfers: Sequence[Transfer], at_ms: int) -> None:
        for transfer in transfers:
            self.debited_fen[AccountKind.SPONSOR, transfer.sponsor] += transfer.amount_fen
            self.credited_fen[AccountKind.USER, transfer.user] += transfer.amount_fen
        self.latency += count_latency(transfers, at_ms)


def _payout_order(transfer: Transfer) -> tuple[int, int]:
    return -transfer.amount_fen, -transfer.serial
