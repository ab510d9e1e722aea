"""Owns the header of a ticket file: how it is packed, and what makes one wrong (F19).

Refuses to read records and to hold a key; the signature is checked by whoever has the key.
"""

from dataclasses import dataclass

from hongbao.domain import ticket
from hongbao.domain.errors import Corrupt


@dataclass(frozen=True, slots=True)
class FileHeader:
    """Is the signed head of a ticket file."""

    campaign_hash: bytes
    scheme_number: int
    slot: int
    ticket_shard: int
    claims_shard: int
    file: int
    count: int
    sha256: bytes  # of the records

    @property
    def file_bytes(self) -> int:
        """Return the only size that the whole file may have."""
        return ticket.FILE_RECORDS_AT + self.count * ticket.RECORD_BYTES

    def pack(self) -> bytes:
        return ticket.FILE_HEADER.pack(
            ticket.FILE_MAGIC,
            ticket.FILE_VERSION,
            self.campaign_hash,
            self.scheme_number,
            self.slot,
            self.ticket_shard,
            self.claims_shard,
            self.file,
            self.count,
            self.sha256,
        )


def unpack_header(head: bytes) -> FileHeader:
    """Return the header in the first bytes of a ticket file.

    Raises Corrupt for a short head, another magic or another version.
    """
    if len(head) < ticket.FILE_RECORDS_AT:
        raise Corrupt(f"ticket file: {len(head)} bytes are too few for a header")
    magic, version, *fields = ticket.FILE_HEADER.unpack_from(head)
    if magic != ticket.FILE_MAGIC:
        raise Corrupt(f"ticket file: magic {magic!r} is not {ticket.FILE_MAGIC!r}")
    if version != ticket.FILE_VERSION:
        raise Corrupt(f"ticket file: version {version} is not {ticket.FILE_VERSION}")
    return FileHeader(*fields)


def signature_of(head: bytes) -> bytes:
    """Return the Ed25519 signature that stands behind the packed header."""
    return head[ticket.FILE_HEADER.size : ticket.FILE_RECORDS_AT]
