"""Owns how a span's money becomes amounts: exact sum, bounds kept, no bias by position (R40, R41).

Every amount is a symmetric function of independent draws, so the amounts of a span are
exchangeable: no place in it is better than another. All arithmetic is on integers. O(count).

    uniform  even between min and twice the mean (mirrored at max when the mean is high)
    lucky    Lomax with exponent 2: many small, few large, P(over 10 times the mean) = 0.8 %
"""

import math
from collections.abc import Callable
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]

SPAN_PACKETS_MAX: Final = 1 << 20  # keeps sums of weights within 64 bits with room
WEIGHT_BITS: Final = 26
SHIFT: Final = 38  # weights times scale stay below 2 ** (24 + 38)
ROOM_FEN_MAX: Final = 1 << 24


def split_span(
    count: int, total_fen: int, min_fen: int, max_fen: int, curve: str, words: Words
) -> NDArray[np.uint32]:
    """Split `total_fen` into `count` amounts within [min_fen, max_fen], exact to the fen.

    `words` are `count` secret random words. Raises ValueError when no such split exists.
    """
    room = max_fen - min_fen
    spread = total_fen - count * min_fen
    if not 0 < count <= SPAN_PACKETS_MAX or len(words) != count:
        raise ValueError(f"a span has 1 to {SPAN_PACKETS_MAX} packets and as many words")
    if min_fen < 0 or room >= ROOM_FEN_MAX or not 0 <= spread <= count * room:
        raise ValueError(
            f"{total_fen} fen cannot be split into {count} amounts of {min_fen} to {max_fen} fen"
        )
    weights = CURVES[curve](words)
    keys = words.astype(np.uint32)  # the low half; weights use the high half
    if curve == "uniform" and 2 * spread > count * room:
        mirrored = _shares(weights, keys, count * room - spread, room)
        return (np.uint64(max_fen) - mirrored).astype(np.uint32)
    return (_shares(weights, keys, spread, room) + np.uint64(min_fen)).astype(np.uint32)


def _shares(weights: Words, keys: NDArray[np.uint32], spread: int, room: int) -> Words:
    """Return shares of `spread` in proportion to the weights, none above `room`."""
    if spread in (0, len(weights) * room):
        return np.full(len(weights), room if spread else 0, dtype=np.uint64)
    scale, heaviest = _scale(weights, spread, room)
    if heaviest < 1 << WEIGHT_BITS:
        weights = np.minimum(weights, np.uint64(heaviest))
    shares = weights * np.uint64(scale)
    shares >>= np.uint64(SHIFT)
    _hand_out(shares, spread - int(shares.sum()), room, keys)
    return shares


def _scale(weights: Words, spread: int, room: int) -> tuple[int, int]:
    """Return (fixed-point fen per weight, heaviest weight that still gets at most `room`).

    Weights above the heaviest get `room`; what they lose is spread over the others, which may
    lift more of them over the limit, until nothing changes. The set only grows, so this ends.
    """
    whole_weight = int(weights.sum())
    open_weight, open_spread, capped = whole_weight, spread, 0
    while True:
        heaviest = room * open_weight // open_spread
        if heaviest >= 1 << WEIGHT_BITS:
            break
        above = weights > np.uint64(heaviest)
        now_capped = int(np.count_nonzero(above))
        if now_capped == capped:
            break
        capped = now_capped
        next_weight = whole_weight - int(weights[above].sum())
        if next_weight == 0 or spread <= capped * room:
            break
        open_weight, open_spread = next_weight, spread - capped * room
    return (open_spread << SHIFT) // open_weight, heaviest


def _hand_out(shares: Words, left: int, room: int, keys: NDArray[np.uint32]) -> None:
    """Hand the last `left` fen, in place, evenly and then to a random subset with room."""
    while left:
        able = np.flatnonzero(shares < np.uint64(room))
        each = left // len(able)
        if each == 0:
            shares[able[np.argpartition(keys[able], left - 1)[:left]]] += np.uint64(1)
            return
        gifts = np.minimum(np.uint64(room) - shares[able], np.uint64(each))
        shares[able] += gifts
        left -= int(gifts.sum())


def _uniform_weights(words: Words) -> Words:
    return (words >> np.uint64(64 - WEIGHT_BITS)) + np.uint64(1)


def _lucky_weights(words: Words) -> Words:
    """Look the quantile of the top 16 bits up and interpolate with the next 10."""
    values, steps = _lucky_table()
    cell = (words >> np.uint64(48)).astype(np.intp)
    within = (words >> np.uint64(38)) & np.uint64(0x3FF)
    return values[cell] + ((steps[cell] * within) >> np.uint64(10))


@cache
def _lucky_table() -> tuple[Words, Words]:
    """Return quantiles of 1/sqrt(1 - u) - 1 as integers of 18 fractional bits, and their steps."""
    cells = 1 << 16
    edges = [math.isqrt((1 << 52) // (cells - cell)) - (1 << 18) + 1 for cell in range(cells)]
    edges.append(1 << WEIGHT_BITS)
    table = np.array(edges, dtype=np.uint64)
    return table[:-1], np.diff(table)


CURVES: Final[dict[str, Callable[[Words], Words]]] = {
    "uniform": _uniform_weights,
    "lucky": _lucky_weights,
}
