"""Owns reading and writing HTTP/2 header blocks without state (RFC 7541).

We announce a dynamic table of size 0 and never index, so every block stands for itself: the
decoded form of a block can be cached by its bytes. Refuses to keep a dynamic table.
"""

from collections.abc import Iterable
from typing import Final

_STATIC_NAMES: Final = tuple(
    """
    :authority :method :method :path :path :scheme :scheme :status :status :status :status
    :status :status :status accept-charset accept-encoding accept-language accept-ranges accept
    access-control-allow-origin age allow authorization cache-control content-disposition
    content-encoding content-language content-length content-location content-range content-type
    cookie date etag expect expires from host if-match if-modified-since if-none-match if-range
    if-unmodified-since last-modified link location max-forwards proxy-authenticate proxy-
    authorization range referer refresh retry-after server set-cookie strict-transport-security
    transfer-encoding user-agent vary via www-authenticate
    """.split()  # noqa: SIM905 - the RFC's table, as a table
)
_STATIC_VALUES: Final = {
    2: "GET",
    3: "POST",
    4: "/",
    5: "/index.html",
    6: "http",
    7: "https",
    8: "200",
    9: "204",
    10: "206",
    11: "304",
    12: "400",
    13: "404",
    14: "500",
    16: "gzip, deflate",
}

# The code is canonical, so the lengths of the 257 symbols (5 = A … 30 = Z) define it all.
_HUFFMAN_LENGTHS: Final = (
    "ISXXXXXXXTZXXZXXXXXXXXZXXXXXXXXXBFFHIBDGFFDGDBBBAAABBBBBBBCDKBHFIBCCCCCCCCCCCCCCCCCCCCCCDCDI"
    "OIJBKABABABBBACCBBBABCBAABCCCCCKGJIXPRPPRRRSRSSSSSTSTTRSTSSSSQRSRSSTRQPRRSSQSRRTQRSSQQRQSRSS"
    "PRRRSRRSVVPORSRUVVVWWVTUOQVWWVWTQQVVXWWWPTPQRQQSRRUUTTVSVWVVWWWWWXWWWWWVZ"
)
_HUFFMAN_END: Final = 256

Headers = dict[str, str]


def _huffman_codes() -> dict[tuple[int, int], int]:
    lengths = [ord(letter) - ord("A") + 5 for letter in _HUFFMAN_LENGTHS]
    codes = {}
    code = length = 0
    for symbol in sorted(range(257), key=lambda symbol: (lengths[symbol], symbol)):
        code <<= lengths[symbol] - length
        length = lengths[symbol]
        codes[length, code] = symbol
        code += 1
    return codes


_HUFFMAN: Final = _huffman_codes()


class BadBlock(Exception):
    """Says that a header block breaks RFC 7541 or uses the table that we announced away."""


def decode_block(block: bytes) -> Headers:
    """Return the block's headers; a repeated name keeps its last value."""
    headers: Headers = {}
    position = 0
    while position < len(block):
        first = block[position]
        if first & 0x80:  # indexed: name and value of the static table
            index, position = _read_integer(block, position, 7)
            if index not in _STATIC_VALUES:
                raise BadBlock(f"index {index} names no static header")
            headers[_STATIC_NAMES[index - 1]] = _STATIC_VALUES[index]
        elif first & 0xE0 == 0x20:  # the peer takes over our table size of 0
            _, position = _read_integer(block, position, 5)
        else:
            index, position = _read_integer(block, position, 6 if first & 0x40 else 4)
            if index > len(_STATIC_NAMES):
                raise BadBlock(f"index {index} lies in the dynamic table")
            if index:
                name = _STATIC_NAMES[index - 1]
            else:
                name, position = _read_string(block, position)
            headers[name], position = _read_string(block, position)
    return headers


def encode_block(headers: Iterable[tuple[str, str]]) -> bytes:
    """Return a block of literals that are never indexed."""
    out = bytearray()
    for name, value in headers:
        out += b"\x00" + _write_string(name.encode()) + _write_string(value.encode())
    return bytes(out)


def _read_integer(block: bytes, position: int, bits: int) -> tuple[int, int]:
    limit = (1 << bits) - 1
    value = block[position] & limit
    position += 1
    if value < limit:
        return value, position
    for shift in range(0, 28, 7):
        if position >= len(block):
            break
        value += (block[position] & 0x7F) << shift
        position += 1
        if not block[position - 1] & 0x80:
            return value, position
    raise BadBlock("an integer of the block is cut or too large")


def _read_string(block: bytes, position: int) -> tuple[str, int]:
    if position >= len(block):
        raise BadBlock("a string of the block is cut")
    huffman = block[position] & 0x80
    size, position = _read_integer(block, position, 7)
    raw = block[position : position + size]
    if len(raw) != size:
        raise BadBlock("a string of the block is cut")
    return (_decode_huffman(raw) if huffman else raw.decode("latin-1")), position + size


def _decode_huffman(raw: bytes) -> str:
    out = bytearray()
    code = length = 0
    for byte in raw:
        for bit in range(7, -1, -1):
            code = code << 1 | (byte >> bit & 1)
            length += 1
            symbol = _HUFFMAN.get((length, code))
            if symbol is not None:
                if symbol == _HUFFMAN_END:
                    raise BadBlock("a string holds the end symbol")
                out.append(symbol)
                code = length = 0
    if length > 7 or code != (1 << length) - 1:
        raise BadBlock("a string ends in bad padding")
    return out.decode("latin-1")


def _write_string(raw: bytes) -> bytes:
    size = len(raw)
    if size < 127:
        return bytes((size,)) + raw
    out = bytearray((127,))
    size -= 127
    while size >= 128:
        out.append(size & 0x7F | 0x80)
        size >>= 7
    out.append(size)
    return bytes(out) + raw
