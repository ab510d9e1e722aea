"""Owns the minting of one ticket file: chunk by chunk, hashed and signed, atomic, resumable.

A finished file is never minted again: its header, signature, size and hash are checked instead.
Its amounts are durable before it gets its name.
"""

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from hongbao.cipher.keyring import Keyring
from hongbao.domain.errors import Corrupt
from hongbao.domain.ids import Fen
from hongbao.domain.manifest import FileRange, MintedFile, file_name
from hongbao.domain.plan import FilePlan, MintPlan
from hongbao.domain.ticket import FILE_RECORDS_AT, campaign_hash
from hongbao.domain.ticket_file import FileHeader, signature_of, unpack_header
from hongbao.mint.chunk import ChunkMinter
from hongbao.mint.durable import publish

READ_BYTES: Final = 1 << 20
AMOUNT_BYTES: Final = 4

Minted = Callable[[int], None]


@dataclass(frozen=True)
class FileMinter:
    """Mints the files of one plan under `root`; half-made ones lie in `work_folder`."""

    plan: MintPlan
    keyring: Keyring
    root: Path
    work_folder: Path

    def mint_file(self, file: FilePlan, minted: Minted) -> MintedFile:
        """Mint the file, or check that it is there; call `minted` with packets as they come."""
        final = self.root / self._name(file)
        count = sum(end - start for _, start, end in self.plan.file_ranges(file))
        sha256 = self._finished(file, final, count)
        if sha256 is not None:
            minted(count)
            return self._described(file, sha256)
        partial = self.work_folder / f"{file.file}.partial"
        with (
            _locked(partial) as out,
            (self.work_folder / "amounts.bin").open("r+b", buffering=0) as amounts,
        ):
            out.truncate(0)
            sha256 = self._write_file(file, count, out, amounts, minted)
            publish(partial, final)
        return self._described(file, sha256)

    def _write_file(
        self, file: FilePlan, count: int, out: BinaryIO, amounts: BinaryIO, minted: Minted
    ) -> bytes:
        def write_amounts(serial: int, fen: NDArray[np.uint32]) -> None:
            place = (serial - self.plan.serial_base) * AMOUNT_BYTES
            _write_all_at(amounts.fileno(), fen.astype(">u4").data.cast("B"), place)

        chunks = ChunkMinter(self.plan, self.keyring, {})
        digest = hashlib.sha256()
        out.seek(FILE_RECORDS_AT)
        for chunk in range(file.chunk_start, file.chunk_end):
            records = chunks.mint_chunk(file.slot, chunk, write_amounts)
            octets = records.view(np.uint8).data
            digest.update(octets)
            out.write(octets)
            minted(len(records))
        header = self._header(file, count, digest.digest()).pack()
        signer = Ed25519PrivateKey.from_private_bytes(self.keyring.signing_key)
        out.seek(0)
        out.write(header + signer.sign(header))
        out.flush()
        os.fsync(amounts.fileno())
        os.fsync(out.fileno())
        return digest.digest()

    def _finished(self, file: FilePlan, final: Path, count: int) -> bytes | None:
        """Return the hash of the records if the file is there and whole."""
        if not final.exists():
            return None
        with final.open("rb") as stream:
            head = stream.read(FILE_RECORDS_AT)
            try:
                found = unpack_header(head)
            except Corrupt:
                return None
            wanted = self._header(file, count, found.sha256)
            if found != wanted or os.fstat(stream.fileno()).st_size != found.file_bytes:
                return None
            digest = hashlib.sha256()
            while octets := stream.read(READ_BYTES):
                digest.update(octets)
        verifier = Ed25519PrivateKey.from_private_bytes(self.keyring.signing_key).public_key()
        try:
            verifier.verify(signature_of(head), found.pack())
        except InvalidSignature:
            return None
        return found.sha256 if digest.digest() == found.sha256 else None

    def _header(self, file: FilePlan, count: int, sha256: bytes) -> FileHeader:
        return FileHeader(
            campaign_hash=campaign_hash(self.plan.campaign),
            scheme_number=self.plan.scheme_number,
            slot=file.slot,
            ticket_shard=file.ticket_shard,
            claims_shard=file.claims_shard,
            file=file.file,
            count=count,
            sha256=sha256,
        )

    def _described(self, file: FilePlan, sha256: bytes) -> MintedFile:
        ranges = self.plan.file_ranges(file)
        fen = sum(batch.money_fen(end) - batch.money_fen(start) for batch, start, end in ranges)
        return MintedFile(
            file=file.file,
            slot=file.slot,
            ticket_shard=file.ticket_shard,
            claims_shard=file.claims_shard,
            count=sum(end - start for _, start, end in ranges),
            total_fen=Fen(fen),
            sha256=sha256.hex(),
            name=self._name(file),
            ranges=tuple(FileRange(batch.batch, start, end) for batch, start, end in ranges),
        )

    def _name(self, file: FilePlan) -> str:
        plan = self.plan
        return file_name(plan.campaign, plan.scheme_number, file.slot, file.ticket_shard)


@contextlib.contextmanager
def _locked(partial: Path) -> Iterator[BinaryIO]:
    """Open a half-made file alone: an orphan of a killed run may hold it, and name it, yet."""
    while True:
        with open(os.open(partial, os.O_RDWR | os.O_CREAT, 0o644), "wb") as out:
            fcntl.flock(out, fcntl.LOCK_EX)
            if partial.exists() and os.path.samestat(os.fstat(out.fileno()), partial.stat()):
                yield out
                return


def _write_all_at(descriptor: int, octets: memoryview, place: int) -> None:
    while octets:
        written = os.pwrite(descriptor, octets, place)
        octets, place = octets[written:], place + written
