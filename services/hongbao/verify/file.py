"""Owns the verification of one ticket file: every byte, every ticket, every amount (R54, F19).

Each chunk must hold exactly the serials that the plan gives it. The plan's spans are disjoint
(verify/plan.py), so together the files hold every packet of the scheme once and no other: global
uniqueness in constant memory.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from numpy.typing import NDArray

from hongbao.cipher.decipher import Decipherer, OpenedRecords
from hongbao.domain import manifest as manifests
from hongbao.domain.errors import Corrupt
from hongbao.domain.manifest import Manifest
from hongbao.domain.plan import FilePlan, MintPlan, Span
from hongbao.domain.ticket import FILE_RECORDS_AT, RECORD_BYTES, campaign_hash
from hongbao.domain.ticket_file import FileHeader, signature_of, unpack_header
from hongbao.verify.report import Finding, Findings

AMOUNT: Final = np.dtype(">u4")
Read = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class VerifiedFile:
    """Is what one file really holds."""

    packets: int
    fen_by_batch: Counter[int]
    fen_by_key: Counter[int]
    findings: list[Finding]


@dataclass(frozen=True)
class FileVerifier:
    """Verifies the files of one plan; `manifest` is None when it could not be read."""

    plan: MintPlan
    manifest: Manifest | None
    root: Path
    decipherer: Decipherer
    verify_key: bytes

    def verify_file(self, file: FilePlan, tell: Read) -> VerifiedFile:
        """Verify one file; call `tell` with the packets read as they come."""
        plan = self.plan
        name = manifests.file_name(plan.campaign, plan.scheme_number, file.slot, file.ticket_shard)
        contents = _Contents(Findings(name))
        path = self.root / name
        if not path.is_file():
            contents.findings.add("missing", "the file is not there")
            return contents.verified()
        with path.open("rb") as stream:
            head = stream.read(FILE_RECORDS_AT)
            header = self._check_head(file, head, path.stat().st_size, contents.findings)
            digest = hashlib.sha256()
            for chunk in range(file.chunk_start, file.chunk_end):
                spans = plan.chunk_spans(file.slot, chunk)
                octets = stream.read(sum(span.count for span in spans) * RECORD_BYTES)
                digest.update(octets)
                contents.read_chunk(chunk, spans, octets, self)
                tell(len(octets) // RECORD_BYTES)
            _drain(stream, digest.update)
        self._check_hash(file, header, digest.digest(), contents.findings)
        return contents.verified()

    def amounts(self) -> NDArray[np.uint32] | None:
        """Map the table of amounts, if it has the right size."""
        name = manifests.amounts_name(self.plan.campaign, self.plan.scheme_number)
        path = self.root / name
        if not path.is_file() or path.stat().st_size != self.plan.packets * AMOUNT.itemsize:
            return None
        return np.memmap(path, dtype=AMOUNT, mode="r")

    def _check_head(
        self, file: FilePlan, head: bytes, file_bytes: int, findings: Findings
    ) -> FileHeader | None:
        try:
            header = unpack_header(head)
        except Corrupt as error:
            findings.add("header", str(error))
            return None
        ranges = self.plan.file_ranges(file)
        wanted = FileHeader(
            campaign_hash=campaign_hash(self.plan.campaign),
            scheme_number=self.plan.scheme_number,
            slot=file.slot,
            ticket_shard=file.ticket_shard,
            claims_shard=file.claims_shard,
            file=file.file,
            count=sum(end - start for _, start, end in ranges),
            sha256=header.sha256,
        )
        for field in FileHeader.__slots__:
            is_now, should_be = getattr(header, field), getattr(wanted, field)
            if is_now != should_be:
                findings.add("header", f"{field} is {is_now!r}, the plan says {should_be!r}")
        if file_bytes != wanted.file_bytes:
            findings.add("size", f"{file_bytes} bytes instead of {wanted.file_bytes}")
        try:
            public = Ed25519PublicKey.from_public_bytes(self.verify_key)
            public.verify(signature_of(head), header.pack())
        except InvalidSignature:
            findings.add("signature", "the signature of the header is not good")
        return header

    def _check_hash(
        self, file: FilePlan, header: FileHeader | None, sha256: bytes, findings: Findings
    ) -> None:
        if header is not None and header.sha256 != sha256:
            findings.add("hash", f"the records hash to {sha256.hex()}, not as the header says")
        if self.manifest is not None:
            listed = [f.sha256 for f in self.manifest.files if f.file == file.file]
            if listed != [sha256.hex()]:
                findings.add(
                    "hash", f"the records hash to {sha256.hex()}, not as the manifest says"
                )


class _Contents:
    """Gathers what the chunks of one file hold."""

    def __init__(self, findings: Findings) -> None:
        self.findings = findings
        self._packets = 0
        self._fen_by_batch: Counter[int] = Counter()
        self._fen_by_key: Counter[int] = Counter()

    def read_chunk(
        self, chunk: int, spans: Sequence[Span], octets: bytes, verifier: FileVerifier
    ) -> None:
        count = len(octets) // RECORD_BYTES
        records = np.frombuffer(octets, np.uint8, count * RECORD_BYTES).reshape(-1, RECORD_BYTES)
        opened = verifier.decipherer.open_records(records)
        self.findings.add_many(
            "ticket", np.flatnonzero(~opened.good), f"chunk {chunk}: record {{}} does not open"
        )
        self._check_packets(chunk, spans, opened, verifier)

    def _check_packets(
        self, chunk: int, spans: Sequence[Span], opened: OpenedRecords, verifier: FileVerifier
    ) -> None:
        columns = _SpanColumns(spans)
        good = np.flatnonzero(opened.good)
        serial = opened.serial[good].astype(np.int64)
        place = columns.find(serial)
        here = (place >= 0) & (serial < columns.end[place])
        self.findings.add_many(
            "foreign", serial[~here], f"chunk {chunk}: packet {{}} does not belong here"
        )
        rows, place = good[here], place[here]
        self._check_once(chunk, columns, opened.serial[rows].astype(np.int64))
        self._check_fields(columns, opened, rows, place)
        self._check_amounts(columns, opened, rows, place, verifier)
        fen = np.zeros(len(spans), dtype=np.int64)
        np.add.at(fen, place, opened.amount_fen[rows].astype(np.int64))
        for span, span_fen in zip(spans, fen.tolist(), strict=True):
            self._fen_by_batch[span.batch.batch] += span_fen
            self._fen_by_key[span.key_id] += span_fen
        self._packets += len(rows)

    def _check_once(self, chunk: int, columns: "_SpanColumns", serial: NDArray[np.int64]) -> None:
        """Every serial of the spans must be there, once."""
        place = columns.find(serial)
        bit = columns.first_bit[place] + serial - columns.start[place]
        times = np.bincount(bit, minlength=columns.count)
        for kind, bits in (("absent", times == 0), ("duplicate", times > 1)):
            serials = columns.serials(np.flatnonzero(bits))
            verb = "is missing" if kind == "absent" else "stands more than once"
            self.findings.add_many(kind, serials, f"chunk {chunk}: packet {{}} {verb}")

    def _check_fields(
        self,
        columns: "_SpanColumns",
        opened: OpenedRecords,
        rows: NDArray[np.intp],
        place: NDArray[np.intp],
    ) -> None:
        for field in ("key_id", "slot", "sponsor", "batch"):
            wrong = getattr(opened, field)[rows] != getattr(columns, field)[place]
            self.findings.add_many(
                "mismatch", opened.serial[rows[wrong]], f"packet {{}}: {field} is not the plan's"
            )

    def _check_amounts(
        self,
        columns: "_SpanColumns",
        opened: OpenedRecords,
        rows: NDArray[np.intp],
        place: NDArray[np.intp],
        verifier: FileVerifier,
    ) -> None:
        fen, serial = opened.amount_fen[rows], opened.serial[rows]
        outside = (fen < columns.min_fen[place]) | (fen > columns.max_fen[place])
        self.findings.add_many(
            "bounds", serial[outside], "packet {}: the amount is outside its batch's bounds"
        )
        table = verifier.amounts()
        if table is not None:
            sealed = table[serial.astype(np.int64) - verifier.plan.serial_base]
            self.findings.add_many(
                "amount", serial[sealed != fen], "packet {}: ticket and table differ in the amount"
            )

    def verified(self) -> VerifiedFile:
        return VerifiedFile(
            self._packets, self._fen_by_batch, self._fen_by_key, self.findings.told()
        )


class _SpanColumns:
    """Is the spans of a chunk as columns, ordered by serial for searching."""

    def __init__(self, spans: Sequence[Span]) -> None:
        def column(values: Sequence[int]) -> NDArray[np.int64]:
            return np.array(values, dtype=np.int64)

        self.start = column([span.batch.serial_base + span.start for span in spans])
        self.end = column([span.batch.serial_base + span.end for span in spans])
        self.first_bit = np.cumsum([0, *(span.count for span in spans)])[:-1]
        self.key_id = column([span.key_id for span in spans])
        self.slot = column([span.batch.slot for span in spans])
        self.sponsor = column([span.batch.sponsor for span in spans])
        self.batch = column([span.batch.batch for span in spans])
        self.min_fen = column([span.batch.min_fen for span in spans])
        self.max_fen = column([span.batch.max_fen for span in spans])
        self.count = sum(span.count for span in spans)
        self._order = np.argsort(self.start)
        self._starts = self.start[self._order]

    def find(self, serial: NDArray[np.int64]) -> NDArray[np.intp]:
        """Return the span that starts at or before each serial; -1 before the first."""
        at = np.searchsorted(self._starts, serial, side="right") - 1
        if not len(self._starts):
            return at
        return np.where(at < 0, -1, self._order[at])

    def serials(self, bits: NDArray[np.intp]) -> NDArray[np.int64]:
        place = np.searchsorted(self.first_bit, bits, side="right") - 1
        serials: NDArray[np.int64] = self.start[place] + bits - self.first_bit[place]
        return serials


def _drain(stream: BinaryIO, update: Callable[[bytes], None]) -> None:
    """Read what stands behind the last record, so that the hash covers it."""
    while octets := stream.read(1 << 20):
        update(octets)
