"""Owns how money is written: yuan with two decimals in files, int fen inside; never a float."""

import re
from typing import Final

from hongbao.domain.ids import Fen

MONEY_FEN_MAX: Final = 10**15  # 10 trillion yuan: far above any budget, far below 63 bits
_YUAN: Final = re.compile(r"(0|[1-9][0-9]*)\.([0-9]{2})")


def parse_yuan(text: str) -> Fen:
    """Return the fen of an amount such as `1234.50`.

    Only ASCII digits, one point and exactly two decimals are taken: a budget is never guessed
    at and never rounded. Raises ValueError that says what is wrong.
    """
    match = _YUAN.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not an amount in yuan: {_why_not(text)}")
    if len(text) > 20:
        raise ValueError(f"an amount of {len(text)} characters is above the largest possible")
    amount_fen = int(match[1]) * 100 + int(match[2])
    if amount_fen > MONEY_FEN_MAX:
        raise ValueError(f"{text} yuan is above the largest possible amount")
    return Fen(amount_fen)


def format_yuan(amount_fen: int) -> str:
    """Return an amount for people, such as `1,234.56`."""
    sign = "-" if amount_fen < 0 else ""
    return f"{sign}{abs(amount_fen) // 100:,}.{abs(amount_fen) % 100:02d}"


def _why_not(text: str) -> str:
    if not text:
        return "the cell is empty"
    if any(not char.isascii() and char.isdigit() for char in text):
        return "full-width or other non-ASCII digits"
    if text[0] in "+-":
        return "it has a sign"
    if "," in text:
        return "it has a thousands separator"
    if re.fullmatch(r"[0-9.]+[eE][+-]?[0-9]+", text):
        return "it has an exponent"
    if re.fullmatch(r"[0-9]+\.[0-9]{3,}", text):
        return "it has more than two decimals, and amounts are never rounded"
    if re.fullmatch(r"[0-9]+(\.[0-9]?)?", text):
        return "exactly two decimals are needed"
    if re.fullmatch(r"0[0-9]+\.[0-9]{2}", text):
        return "it has leading zeros"
    return "write it as 1234.50"
