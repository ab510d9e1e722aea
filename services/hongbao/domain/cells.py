"""Owns what a cell of an input file may hold; each parser raises ValueError that says why."""

import re
import unicodedata
from collections.abc import Callable
from datetime import datetime
from typing import Final

from hongbao.domain.money import format_yuan, parse_yuan

NAME_CHARS_MAX: Final = 100
_ID: Final = re.compile(r"[a-z0-9-]{1,40}")
_RESOURCE: Final = re.compile(r"[a-z0-9][a-z0-9_-]*([./][a-z0-9_-]+)*")
_RESOURCE_CHARS_MAX: Final = 100
_NUMBER: Final = re.compile(r"0|[1-9][0-9]{0,18}")
_INSTANT: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(Z|[+-]\d\d:\d\d)", re.ASCII)


def unfit_characters(text: str) -> str | None:
    """Say what makes this text unfit for any cell, or None.

    Formula cells would run in the spreadsheet of whoever opens an export; invisible
    characters let two different names look the same.
    """
    if text != text.strip():
        return "the cell has spaces around it"
    if text[:1] in ("=", "+", "-", "@"):
        return f"the cell begins with {text[0]!r} as a formula does"
    odd = next((char for char in text if unicodedata.category(char)[0] == "C"), None)
    if odd is not None:
        return f"the cell holds the invisible or control character U+{ord(odd):04X}"
    return None


def parse_id(text: str) -> str:
    if _ID.fullmatch(text) is None:
        raise ValueError(f"{text!r} is not an id: 1 to 40 of a-z, 0-9 and -")
    return text


def parse_name(text: str) -> str:
    if not text:
        raise ValueError("the name is empty")
    if len(text) > NAME_CHARS_MAX:
        raise ValueError(f"the name has {len(text)} characters, at most {NAME_CHARS_MAX}")
    return text


def parse_resource(text: str) -> str:
    if len(text) > _RESOURCE_CHARS_MAX or _RESOURCE.fullmatch(text) is None:
        raise ValueError(f"{text!r} is not a resource key such as video/spring-7.mp4")
    return text


def parse_whole(low: int, high: int) -> Callable[[str], int]:
    """Return a parser of whole numbers from `low` to `high`, both included."""

    def parse(text: str) -> int:
        if _NUMBER.fullmatch(text) is None:
            full_width = any(not char.isascii() and char.isdigit() for char in text)
            why = " (full-width or other non-ASCII digits)" if full_width else ""
            raise ValueError(f"{text!r} is not a whole number in plain digits{why}")
        number = int(text)
        if not low <= number <= high:
            raise ValueError(f"{number} is outside {low} to {high}")
        return number

    return parse


def parse_yuan_within(low_fen: int, high_fen: int, why: str = "") -> Callable[[str], int]:
    """Return a parser of amounts from `low_fen` to `high_fen`, both included."""
    reason = f" ({why})" if why else ""

    def parse(text: str) -> int:
        amount_fen = parse_yuan(text)
        if not low_fen <= amount_fen <= high_fen:
            low, high = format_yuan(low_fen), format_yuan(high_fen)
            raise ValueError(f"{format_yuan(amount_fen)} yuan is outside {low} to {high}{reason}")
        return amount_fen

    return parse


def parse_one_of(choices: tuple[str, ...]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"{text!r} is none of {', '.join(choices)}")
        return text

    return parse


def parse_instant_ms(text: str) -> int:
    """Return the unix milliseconds of an instant with its offset."""
    if _INSTANT.fullmatch(text) is None:
        raise ValueError(f"{text!r} is not an instant such as 2027-02-05T20:00:00+08:00")
    try:
        return int(datetime.fromisoformat(text).timestamp()) * 1000
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{text!r} is not an instant: {error}") from error
