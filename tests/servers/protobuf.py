"""Writes protobuf fields by hand, for calls of TiKV that our client has no messages for."""


def field(index: int, data: bytes) -> bytes:
    """Return a length-delimited field."""
    return _varint(index << 3 | 2) + _varint(len(data)) + data


def number(index: int, value: int) -> bytes:
    """Return a field that is a number."""
    return _varint(index << 3) + _varint(value)


def _varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])
