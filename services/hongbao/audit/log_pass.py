"""Owns the audit's own reading of the claims logs, block by block, to their very end.

It does not stop at the applied position: a block that is in the log is durable, and so is every
claim in it. Marks every packet that was opened. Refuses to use the code that settles.
"""

import itertools
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from hongbao.audit.findings import Findings
from hongbao.audit.packets import HELD, OPENED, TRANSFERRED, UNSETTLED, Columns, Ints, Packets
from hongbao.domain.claim import CLOSING, claims_array, logged_claims
from hongbao.domain.errors import Corrupt
from hongbao.shards.block import Block, ShardKey, decode_block, position_of
from hongbao.shards.ports import LogStore

PLANE: Final = "claims"
PAGE_BLOCKS: Final = 16
CHUNK_BLOCKS: Final = 128


@dataclass
class Tally:
    """Counts packets and money under a number: a key, a file, a pod."""

    packets: Counter[int] = field(default_factory=Counter)
    fen: Counter[int] = field(default_factory=Counter)

    def add(self, numbers: Ints, fen: Ints) -> None:
        """Count packets by their numbers."""
        found, place = np.unique(numbers, return_inverse=True)
        sums = np.zeros(len(found), np.int64)
        np.add.at(sums, place, fen)
        counts = np.bincount(place, minlength=len(found))
        for number, packets, money in zip(
            found.tolist(), counts.tolist(), sums.tolist(), strict=True
        ):
            self.packets[number] += packets
            self.fen[number] += money


@dataclass
class LogSums:
    """Is what the claims logs say in sum."""

    claims: int = 0
    claims_lost: int = 0
    opened: int = 0  # distinct packets
    shards: list[dict[str, int]] = field(default_factory=list)
    by_key: Tally = field(default_factory=Tally)
    by_file: Tally = field(default_factory=Tally)
    by_pod: Tally = field(default_factory=Tally)
    opened_per_second: Counter[int] = field(default_factory=Counter)


async def read_logs(
    store: LogStore, packets: Packets, positions: dict[int, int], findings: Findings
) -> LogSums:
    """Read the log of every claims shard, after the ledger was read: logs only grow."""
    sums = LogSums()
    shards = {int(file.claims_shard) for one in packets.manifests for file in one.files}
    for shard in sorted(shards | set(positions)):
        settled_to = positions.get(shard, 0)
        blocks = claims = epoch = 0
        closed = False
        chunk: list[Block] = []
        async for block in _blocks(store, shard, findings):
            if block.epoch < epoch:
                findings.add("logs_whole", shard=shard, position=block.position, epoch=block.epoch)
            epoch = max(epoch, block.epoch)
            blocks += 1
            if closed and block.entries:
                findings.add(
                    "logs_whole", shard=shard, position=block.position, says="closed before"
                )
            closed = closed or CLOSING in block.entries
            claims += len(logged_claims(block.entries))
            chunk.append(block)
            if len(chunk) == CHUNK_BLOCKS:
                _read_chunk(shard, chunk, settled_to, packets, sums, findings)
                chunk = []
        _read_chunk(shard, chunk, settled_to, packets, sums, findings)
        if blocks < settled_to:
            findings.add("logs_whole", shard=shard, blocks=blocks, settled_to=settled_to)
        row = {"shard": shard, "blocks": blocks, "claims": claims, "settled_to": settled_to}
        sums.shards.append(row)
        sums.claims += claims
    return sums


async def _blocks(store: LogStore, shard: int, findings: Findings) -> AsyncIterator[Block]:
    """Yield every block that can be read; gaps and broken ones are findings."""
    key = ShardKey(PLANE, shard)
    position = 0
    while True:
        start = key.log(position)
        pairs = await store.scan(start, ShardKey(PLANE, shard + 1).log(0), PAGE_BLOCKS)
        for name, data in pairs:
            found = position_of(name)
            if found != position:
                findings.add("logs_whole", found - position, shard=shard, missing=position)
            position = found + 1
            try:
                yield decode_block(data, position=found)
            except Corrupt as error:
                findings.add("logs_whole", shard=shard, position=found, says=str(error))
        if len(pairs) < PAGE_BLOCKS:
            return


def _read_chunk(
    shard: int,
    blocks: list[Block],
    settled_to: int,
    packets: Packets,
    sums: LogSums,
    findings: Findings,
) -> None:
    entries = [logged_claims(block.entries) for block in blocks]
    try:
        claims = claims_array(b"".join(itertools.chain.from_iterable(entries)))
    except Corrupt as error:
        span = f"{blocks[0].position} to {blocks[-1].position}"
        findings.add("logs_whole", shard=shard, positions=span, says=str(error))
        return
    if not len(claims):
        return
    counts = [len(one) for one in entries]
    position = np.repeat([block.position for block in blocks], counts)
    found = packets.find(claims["serial"].astype(np.int64))
    good = _check_claims(shard, claims, found, packets, findings)
    first = _first_of_packet(claims, found, good, packets, findings)
    _compare_with_ledger(claims, found, first, position >= settled_to, packets, sums, findings)
    fen = packets.amounts(found.place[first])
    sums.opened += len(first)
    sums.by_key.add(found.key[first], fen)
    sums.by_file.add(found.file[first], fen)
    sums.by_pod.add(claims["pod"][first].astype(np.int64), fen)
    seconds, opened = np.unique(claims["opened_at_ms"][first] // 1000, return_counts=True)
    sums.opened_per_second.update(dict(zip(seconds.tolist(), opened.tolist(), strict=True)))


def _check_claims(
    shard: int, claims: NDArray[Any], found: Columns, packets: Packets, findings: Findings
) -> NDArray[np.bool_]:
    """Every claim must name a packet as it was minted; say which name a packet at all."""
    good = found.known & found.active
    named = good & (claims["batch"] == found.batch) & (claims["slot"] == found.slot)
    named &= (claims["sponsor"] == found.sponsor) & (claims["key_id"] == found.key)
    named &= (claims["file"] == found.file) & (claims["bit"] == found.bit)
    named &= found.claims_shard == shard
    _add_examples(findings, "claims_within_minted", shard, claims, ~named)
    differs = good & (claims["amount_fen"] != packets.amounts(found.place))
    _add_examples(findings, "amounts_equal", shard, claims, differs)
    return good


def _first_of_packet(
    claims: NDArray[Any],
    found: Columns,
    good: NDArray[np.bool_],
    packets: Packets,
    findings: Findings,
) -> Ints:
    """Mark packets as opened; return the indexes of the first claim of each."""
    index = np.flatnonzero(good)
    _, first = np.unique(found.place[index], return_index=True)
    fresh: Ints = index[np.sort(first)]
    fresh = fresh[packets.marks[found.place[fresh]] & OPENED == 0]
    again = np.setdiff1d(index, fresh)
    for one in again.tolist():
        claim = claims[one]
        serial, user = int(claim["serial"]), int(claim["user"])
        findings.add("packet_opened_once", serial=serial, user=user)
    packets.marks[found.place[fresh]] |= np.uint8(OPENED)
    return fresh


def _compare_with_ledger(
    claims: NDArray[Any],
    found: Columns,
    first: Ints,
    unsettled: NDArray[np.bool_],
    packets: Packets,
    sums: LogSums,
    findings: Findings,
) -> None:
    place, marks = found.place[first], packets.marks[found.place[first]]
    waiting = unsettled[first] & (marks & (TRANSFERRED | HELD) == 0)
    packets.marks[place[waiting]] |= np.uint8(UNSETTLED)
    lost = ~unsettled[first] & (marks & (TRANSFERRED | HELD) == 0)
    sums.claims_lost += int(lost.sum())
    for one in first[lost].tolist():
        claim = claims[one]
        serial, user = int(claim["serial"]), int(claim["user"])
        findings.add("no_claim_lost", serial=serial, user=user)
    other = (marks & TRANSFERRED > 0) & (packets.users[place] != claims["user"][first])
    for one in first[other].tolist():
        claim = claims[one]
        findings.add(
            "paid_as_claimed",
            serial=int(claim["serial"]),
            user=int(claim["user"]),
            says=f"paid to user {packets.users[found.place[one]]}",
        )


def _add_examples(
    findings: Findings, equation: str, shard: int, claims: NDArray[Any], wrong: NDArray[np.bool_]
) -> None:
    for index in np.flatnonzero(wrong).tolist():
        claim = claims[index]
        names = ("serial", "user", "batch", "slot", "sponsor", "key_id", "file", "amount_fen")
        findings.add(equation, shard=shard, **{name: int(claim[name]) for name in names})
