"""Owns the minting of one chunk: split each span, encipher it, shuffle all sponsors (R40, R41).

A chunk follows from the plan, the secrets and its own number alone, so chunks are minted on any
core and again after a crash with the same bytes. Memory is a chunk's, whatever the campaign's.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hongbao.cipher.derive import TicketKeys, ticket_keys
from hongbao.cipher.encipher import encipher_span
from hongbao.cipher.keyring import Keyring
from hongbao.domain.ids import KeyId, SlotNumber
from hongbao.domain.keystream import keystream_words
from hongbao.domain.plan import MintPlan, Span
from hongbao.domain.split import split_span
from hongbao.domain.ticket import RECORD_BYTES, campaign_hash
from hongbao.mint.plan_check import CHUNK_INDEX_BITS

SPLIT: Final = b"split"
SHUFFLE: Final = b"shuffle"

# Receives the amounts of consecutive serials: (first serial, amounts).
AmountsSink = Callable[[int, NDArray[np.uint32]], None]


@dataclass(frozen=True)
class ChunkMinter:
    """Mints the chunks of one plan; keeps the ticket keys it has derived."""

    plan: MintPlan
    keyring: Keyring
    derived: dict[KeyId, TicketKeys]

    def mint_chunk(
        self, slot: SlotNumber, chunk: int, write_amounts: AmountsSink
    ) -> NDArray[np.void]:
        """Return the shuffled records of a chunk; hand every span's amounts to the sink."""
        spans = self.plan.chunk_spans(slot, chunk)
        count = sum(span.count for span in spans)
        records = np.empty((count, RECORD_BYTES), dtype=np.uint8)
        place = 0
        for span in spans:
            amounts = self._split(span)
            serial = span.batch.serial_base + span.start
            write_amounts(serial, amounts)
            encipher_span(
                self._keys(span),
                span.key_id,
                slot,
                span.batch.sponsor,
                span.batch.batch,
                np.arange(serial, serial + span.count, dtype=np.uint64),
                amounts,
                out=records[place : place + span.count],
            )
            place += span.count
        whole: NDArray[np.void] = records.view(f"V{RECORD_BYTES}")[:, 0]
        return whole[self._order(slot, chunk, count)]

    def _split(self, span: Span) -> NDArray[np.uint32]:
        """Draw the amounts of a span. They follow from the batch, not from the scheme."""
        batch = span.batch
        numbers = (*self._campaign, batch.batch, span.start, span.end)
        words = keystream_words(self.keyring.mint_seed, SPLIT, numbers, span.count)
        return split_span(
            span.count, span.total_fen, batch.min_fen, batch.max_fen, batch.curve, words
        )

    def _order(self, slot: int, chunk: int, count: int) -> NDArray[np.intp]:
        """Return a random permutation: random high bits, sorted, carry the index in the low bits.

        44 random bits tie once in hundreds of chunks, and a tie only keeps two packets in order.
        """
        numbers = (*self._campaign, self.plan.scheme_number, slot, chunk)
        keys = keystream_words(self.keyring.mint_seed, SHUFFLE, numbers, count)
        low = np.uint64((1 << CHUNK_INDEX_BITS) - 1)
        keys &= ~low
        keys |= np.arange(count, dtype=np.uint64)
        keys.sort()
        return (keys & low).astype(np.intp)

    def _keys(self, span: Span) -> TicketKeys:
        keys = self.derived.get(span.key_id)
        if keys is None:
            batch = span.batch
            master = self.keyring.ticket_masters[span.key_id]
            keys = ticket_keys(master, self.plan.campaign, span.key_id, batch.slot, batch.sponsor)
            self.derived[span.key_id] = keys
        return keys

    @property
    def _campaign(self) -> tuple[int, int]:
        """Return the campaign as two numbers for the keystream's name."""
        digest = campaign_hash(self.plan.campaign)
        return int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:], "big")
