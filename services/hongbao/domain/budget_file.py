"""Owns the two tables of a campaign: the budget (sponsors) and a script (allocations).

Every row is checked cell by cell and against the rest of the budget; all problems are told at
once, with file, row and column (seed 000 R39, R54). Sums are compared only where every amount
of the sponsor could be read, so that one bad cell is told once.
"""

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from hongbao.domain import cells
from hongbao.domain.campaign import (
    CURVES,
    EXPOSURE_WEIGHT_MAX,
    KINDS,
    SLOT_NUMBER_MAX,
    Allocation,
    Sponsor,
)
from hongbao.domain.ids import Fen, SlotNumber, SponsorIndex
from hongbao.domain.money import MONEY_FEN_MAX, format_yuan
from hongbao.domain.problem import Problems
from hongbao.domain.table_file import read_table
from hongbao.domain.ticket import AMOUNT_FEN_MAX, SERIAL_MAX
from hongbao.domain.yaml_file import Row

SPONSOR_COLUMNS: Final = ("sponsor", "name", "deposit_yuan", "exposure_weight")
SCRIPT_COLUMNS: Final = (
    "sponsor",
    "slot",
    "kind",
    "count",
    "total_yuan",
    "min_yuan",
    "max_yuan",
    "curve",
    "resource",
)
_DEPOSIT: Final = cells.parse_yuan_within(0, MONEY_FEN_MAX)
_WEIGHT: Final = cells.parse_whole(0, EXPOSURE_WEIGHT_MAX)
_SLOT: Final = cells.parse_whole(1, SLOT_NUMBER_MAX)
_COUNT: Final = cells.parse_whole(1, SERIAL_MAX)
_TOTAL: Final = cells.parse_yuan_within(1, MONEY_FEN_MAX)
_AMOUNT: Final = cells.parse_yuan_within(1, AMOUNT_FEN_MAX, "a ticket's 24 bits")
_KIND: Final = cells.parse_one_of(KINDS)
_CURVE: Final = cells.parse_one_of(CURVES)


@dataclass(slots=True)
class Budget:
    """Is the sponsors that could be read, and what is known of the others."""

    file: str
    complete: bool  # every row was read far enough to know its sponsor
    sponsors: list[Sponsor] = field(default_factory=list)
    rows: dict[str, int] = field(default_factory=dict)  # sponsor → row
    deposits: dict[str, int] = field(default_factory=dict)  # sponsor → fen, where readable

    @property
    def total_fen(self) -> int | None:
        """Return the sum of the deposits, or None when one could not be read."""
        known = self.complete and len(self.deposits) == len(self.rows)
        return sum(self.deposits.values()) if known else None


@dataclass(frozen=True, slots=True)
class ScriptRules:
    """Is what a script's rows are checked against; None: could not be read, do not check."""

    budget: Budget
    slots: frozenset[int] | None
    key_cap_fen: int | None


@dataclass(slots=True)
class Script:
    """Is the allocations that could be read, and the money of the others where readable."""

    complete: bool  # every row was read far enough to know its sponsor
    allocations: list[Allocation] = field(default_factory=list)
    rows: dict[tuple[str, int, str], int] = field(default_factory=dict)  # key → row
    spent_fen: dict[str, int] = field(default_factory=dict)  # by sponsor
    unsure: set[str] = field(default_factory=set)  # sponsors with an unreadable amount


def read_budget(file: str, data: bytes, problems: Problems) -> Budget:
    """Read the sponsors; a sponsor's index is its position."""
    table = read_table(file, data, SPONSOR_COLUMNS, problems)
    budget = Budget(file, table.complete)
    names: dict[str, int] = {}
    for index, row in enumerate(table.rows, start=1):
        _read_sponsor(budget, SponsorIndex(index), row, names, problems)
    return budget


def read_script(file: str, data: bytes, rules: ScriptRules, problems: Problems) -> Script:
    """Read a script's allocations and compare their sums with the deposits."""
    table = read_table(file, data, SCRIPT_COLUMNS, problems)
    script = Script(table.complete)
    for row in table.rows:
        _read_allocation(script, row, rules, problems)
    if script.complete and rules.budget.complete:
        _compare_sums(file, rules.budget, script, problems)
    if script.complete and rules.slots is not None:
        filled = {slot for _, slot, _ in script.rows}
        for slot in sorted(rules.slots - filled):
            problems.add(file, 0, "slot", f"slot {slot} has no packets in this script")
    return script


def _read_sponsor(
    budget: Budget, index: SponsorIndex, row: Row, names: dict[str, int], problems: Problems
) -> None:
    sponsor = row.read("sponsor", cells.parse_id, problems)
    name = row.read("name", cells.parse_name, problems)
    deposit_fen = row.read("deposit_yuan", _DEPOSIT, problems)
    weight = row.read("exposure_weight", _WEIGHT, problems)
    if name is not None:
        folded = unicodedata.normalize("NFKC", name).casefold()
        if (first := names.setdefault(folded, row.row)) != row.row:
            problems.add(row.file, row.row, "name", f"{name!r} is the merchant of row {first} too")
    if sponsor is None:
        budget.complete = False
        return
    if (first := budget.rows.setdefault(sponsor, row.row)) != row.row:
        problems.add(row.file, row.row, "sponsor", f"{sponsor!r} is the sponsor of row {first} too")
        budget.complete = False
        return
    if deposit_fen is not None:
        budget.deposits[sponsor] = deposit_fen
    if name is not None and deposit_fen is not None and weight is not None:
        budget.sponsors.append(Sponsor(index, sponsor, name, Fen(deposit_fen), weight))


def _read_allocation(script: Script, row: Row, rules: ScriptRules, problems: Problems) -> None:
    told = problems.count
    sponsor = row.read("sponsor", _known_sponsor(rules.budget), problems)
    slot = row.read("slot", _known_slot(rules.slots), problems)
    kind = row.read("kind", _KIND, problems)
    count = row.read("count", _COUNT, problems)
    total_fen = row.read("total_yuan", _TOTAL, problems)
    min_fen = row.read("min_yuan", _AMOUNT, problems)
    max_fen = row.read("max_yuan", _AMOUNT, problems)
    curve = row.read("curve", _CURVE, problems)
    resource = row.read("resource", cells.parse_resource, problems)
    _note_money(script, sponsor, total_fen)
    _check_bounds(row, count, total_fen, min_fen, max_fen, problems)
    _check_key_cap(row, max_fen, rules.key_cap_fen, problems)
    if sponsor is not None and slot is not None and kind is not None:
        first = script.rows.setdefault((sponsor, slot, kind), row.row)
        if first != row.row:
            what = f"{sponsor}, slot {slot}, {kind}"
            problems.add(row.file, row.row, "", f"{what}: allocated in row {first} already")
    if (
        problems.count == told
        and (sponsor is not None and slot is not None and kind is not None)
        and (count is not None and total_fen is not None)
        and (min_fen is not None and max_fen is not None)
        and (curve is not None and resource is not None)
    ):
        money = Fen(total_fen), Fen(min_fen), Fen(max_fen)
        allocation = Allocation(sponsor, SlotNumber(slot), kind, count, *money, curve, resource)
        script.allocations.append(allocation)


def _note_money(script: Script, sponsor: str | None, total_fen: int | None) -> None:
    if sponsor is None:
        script.complete = False
    elif total_fen is None:
        script.unsure.add(sponsor)
    else:
        script.spent_fen[sponsor] = script.spent_fen.get(sponsor, 0) + total_fen


def _check_bounds(
    row: Row,
    count: int | None,
    total_fen: int | None,
    min_fen: int | None,
    max_fen: int | None,
    problems: Problems,
) -> None:
    if min_fen is not None and max_fen is not None and min_fen > max_fen:
        low, high = format_yuan(min_fen), format_yuan(max_fen)
        problems.add(row.file, row.row, "min_yuan", f"{low} is above the maximum of {high}")
    if count is None or total_fen is None:
        return
    total = format_yuan(total_fen)
    if min_fen is not None and total_fen < count * min_fen:
        least = f"{count:,} packets of at least {format_yuan(min_fen)}"
        message = f"{total} yuan cannot fill {least}: {format_yuan(count * min_fen)} are needed"
        problems.add(row.file, row.row, "total_yuan", message)
    if max_fen is not None and total_fen > count * max_fen:
        most = f"{count:,} packets of at most {format_yuan(max_fen)}"
        message = f"{total} yuan do not fit into {most}: {format_yuan(count * max_fen)} do"
        problems.add(row.file, row.row, "total_yuan", message)


def _check_key_cap(
    row: Row, max_fen: int | None, key_cap_fen: int | None, problems: Problems
) -> None:
    if max_fen is not None and key_cap_fen is not None and max_fen > key_cap_fen:
        high, cap = format_yuan(max_fen), format_yuan(key_cap_fen)
        message = f"a packet of {high} yuan is more than one key may guard ({cap})"
        problems.add(row.file, row.row, "max_yuan", message)


def _compare_sums(file: str, budget: Budget, script: Script, problems: Problems) -> None:
    for sponsor, deposit_fen in budget.deposits.items():
        spent_fen = script.spent_fen.get(sponsor, 0)
        if sponsor in script.unsure or spent_fen == deposit_fen:
            continue
        spent, deposit = format_yuan(spent_fen), format_yuan(deposit_fen)
        by = format_yuan(abs(spent_fen - deposit_fen))
        far = f"{by} too much" if spent_fen > deposit_fen else f"{by} missing"
        where = f"{budget.file}:{budget.rows[sponsor]}"
        message = f"{sponsor}: allocations of {spent} yuan, deposit of {deposit} ({where}): {far}"
        problems.add(file, 0, "total_yuan", message)


def _known_sponsor(budget: Budget) -> Callable[[str], str]:
    def parse(text: str) -> str:
        sponsor = cells.parse_id(text)
        if sponsor not in budget.rows and budget.complete:
            raise ValueError(f"{sponsor!r} is no sponsor of {budget.file}")
        return sponsor

    return parse


def _known_slot(slots: frozenset[int] | None) -> Callable[[str], int]:
    def parse(text: str) -> int:
        slot = _SLOT(text)
        if slots is not None and slot not in slots:
            known = ", ".join(str(one) for one in sorted(slots)[:20])
            raise ValueError(f"slot {slot} is not in the campaign; its slots are {known}")
        return slot

    return parse
