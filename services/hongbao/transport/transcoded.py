"""Owns what the JSON transcoder cannot refuse: a field given twice, and query parameters.

Envoy turns a repeated JSON key, or a key that is in the path as well, into a field that is on
the wire twice; protobuf would quietly take the last one. An unknown key in a body is dropped
before it gets here: nobody can see it (documented in docs/gateway.md).
"""

from collections.abc import Iterator
from typing import Final

from google.protobuf.message import DecodeError, Message

from hongbao.domain.errors import Rejected

ORIGINAL_PATH: Final = b"x-envoy-original-path"


def singular_fields(message: type[Message]) -> dict[int, str]:
    """Return number and JSON name of the fields that may stand once only."""
    fields = message.DESCRIPTOR.fields
    return {field.number: field.json_name for field in fields if not field.is_repeated}


def check_transcoded(original_path: bytes, payload: bytes, singular: dict[int, str]) -> None:
    """Raise Rejected for a JSON request that says something twice, or beside the body."""
    if b"?" in original_path:
        raise Rejected("no query parameters are taken")
    seen: set[int] = set()
    for number in field_numbers(payload):
        if number in seen and number in singular:
            raise Rejected("the field is given twice", field=singular[number])
        seen.add(number)


def field_numbers(payload: bytes) -> Iterator[int]:
    """Yield the numbers of the top-level fields in the order of the wire."""
    position, end = 0, len(payload)
    while position < end:
        tag, position = read_varint(payload, position)
        match tag & 7:
            case 0:
                _, position = read_varint(payload, position)
            case 1:
                position += 8
            case 2:
                size, position = read_varint(payload, position)
                position += size
            case 5:
                position += 4
            case _:
                raise DecodeError("unknown wire type")
        yield tag >> 3


def read_varint(payload: bytes, position: int) -> tuple[int, int]:
    """Return a base-128 number and the position behind it."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(payload):
            break
        byte = payload[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise DecodeError("broken varint")
