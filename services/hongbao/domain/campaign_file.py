"""Owns reading a campaign (YAML) with its budget and scripts into the model; pure: bytes in.

Every problem of every file is told at once. A Campaign is returned only when there is none.
"""

import re
from collections.abc import Mapping
from typing import Final

import yaml

from hongbao.domain import cells, script
from hongbao.domain.budget_file import Budget, ScriptRules, read_budget, read_script
from hongbao.domain.campaign import (
    KEY_CAP_FEN_DEFAULT,
    KEY_CAP_FEN_MAX,
    PER_USER_PACKETS_MAX,
    SCHEMES_MAX,
    SLOT_NUMBER_MAX,
    SLOTS_MAX,
    Allocation,
    Campaign,
    Scheme,
    Slot,
)
from hongbao.domain.ids import CampaignId, Fen, SlotNumber
from hongbao.domain.money import MONEY_FEN_MAX, format_yuan
from hongbao.domain.problem import Problem as Problem
from hongbao.domain.problem import Problems
from hongbao.domain.script import EditFiles
from hongbao.domain.yaml_file import Row, cells_of, fields_of, read_tree, rows_of

ENTRY: Final = "campaign.yaml"
_KEYS: Final = frozenset(
    ("campaign", "title", "budget_yuan", "per_user_packets", "sponsors", "active_scheme")
)
_OPTIONAL_KEYS: Final = frozenset(("key_cap_yuan",))
_LISTS: Final = frozenset(("schemes", "slots"))
_SCHEME_KEYS: Final = frozenset(("scheme", "title", "script"))
_SLOT_KEYS: Final = frozenset(("slot", "name", "starts_at", "ends_at"))
_FILE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*\.(csv|yaml|yml)")
_SLOT_MS_MAX: Final = 24 * 3_600_000


def read_campaign(
    files: Mapping[str, bytes], *, entry: str = ENTRY
) -> tuple[Campaign | None, list[Problem]]:
    """Return the campaign of these files, or all their problems."""
    problems = Problems()
    campaign = _read(files, entry, problems)
    return (campaign if problems.count == 0 else None), problems.told()


def named_files(entry: str, data: bytes) -> list[str]:
    """Return the tables that a campaign file names, so that the caller can load them."""
    ignored = Problems()
    head, schemes, _ = _parts(entry, data, ignored)
    names = [head.read("sponsors", _parse_file_name, ignored)] if head else []
    names += [row.read("script", _parse_file_name, ignored) for row in schemes]
    return sorted({name for name in names if name is not None})


def name_edit(entry: str, data: bytes, scheme: str) -> EditFiles:
    """Return the names of the files that an edit of one scheme lies in; "" where none is named."""
    ignored = Problems()
    head, schemes, _ = _parts(entry, data, ignored)
    sponsors = head.read("sponsors", _parse_file_name, ignored) if head else None
    rows = [row for row in schemes if row.read("scheme", cells.parse_id, ignored) == scheme]
    script_names = [row.read("script", _parse_file_name, ignored) for row in rows[:1]]
    return EditFiles(entry, sponsors or "", (script_names or [None])[0] or "")


def _read(files: Mapping[str, bytes], entry: str, problems: Problems) -> Campaign | None:
    if entry not in files:
        problems.add(entry, 0, "", "the file is missing")
        return None
    head, scheme_rows, slot_rows = _parts(entry, files[entry], problems)
    if head is None:
        return None
    campaign = head.read("campaign", cells.parse_id, problems)
    title = head.read("title", cells.parse_name, problems)
    per_user = head.read("per_user_packets", cells.parse_whole(1, PER_USER_PACKETS_MAX), problems)
    parse_cap = cells.parse_yuan_within(1, KEY_CAP_FEN_MAX, "what one stolen key may cost")
    key_cap_fen = head.read_or("key_cap_yuan", parse_cap, int(KEY_CAP_FEN_DEFAULT), problems)
    slots, slot_numbers = _read_slots(slot_rows, problems)
    budget = _read_sponsors(head, files, problems)
    rules = ScriptRules(budget, slot_numbers, key_cap_fen)
    schemes, scheme_ids = _read_schemes(scheme_rows, files, rules, problems)
    active = _read_active(head, scheme_ids, problems)
    _check_numbers(head, schemes, key_cap_fen, problems)
    if campaign is None or title is None or per_user is None or active is None:
        return None
    return Campaign(
        campaign=CampaignId(campaign),
        title=title,
        sponsors=tuple(budget.sponsors),
        slots=tuple(slots),
        schemes=tuple(schemes),
        active_scheme=active,
        per_user_packets=per_user,
        key_cap_fen=Fen(key_cap_fen),
    )


def _parts(entry: str, data: bytes, problems: Problems) -> tuple[Row | None, list[Row], list[Row]]:
    """Return the campaign's own values, its scheme rows and its slot rows."""
    tree = read_tree(entry, data, problems)
    if tree is None:
        return None, [], []
    fields = fields_of(entry, tree, _KEYS | _LISTS, _OPTIONAL_KEYS, problems)
    if fields is None or not isinstance(tree, yaml.MappingNode):
        return None, [], []
    own = {key: value for key, value in fields.items() if key not in _LISTS}
    head = Row(entry, tree.start_mark.line + 1, cells_of(entry, own, problems))
    schemes = _rows(entry, fields, "schemes", _SCHEME_KEYS, SCHEMES_MAX, problems)
    slots = _rows(entry, fields, "slots", _SLOT_KEYS, SLOTS_MAX, problems)
    return head, schemes, slots


def _rows(
    entry: str,
    fields: Mapping[str, yaml.Node],
    key: str,
    columns: frozenset[str],
    rows_max: int,
    problems: Problems,
) -> list[Row]:
    node = fields.get(key)
    if node is None:
        return []
    line = node.start_mark.line + 1
    if not node.value or len(node.value) > rows_max:
        problems.add(entry, line, key, f"1 to {rows_max:,} entries are needed here")
        return []
    return rows_of(entry, node, columns, frozenset(), problems)


def _read_slots(rows: list[Row], problems: Problems) -> tuple[list[Slot], frozenset[int] | None]:
    """Return the complete slots, and all slot numbers or None when one could not be read."""
    slots: list[Slot] = []
    numbers: dict[int, int] = {}
    named = bool(rows)
    for row in rows:
        number = row.read("slot", cells.parse_whole(1, SLOT_NUMBER_MAX), problems)
        name = row.read("name", cells.parse_name, problems)
        starts_at_ms = row.read("starts_at", cells.parse_instant_ms, problems)
        ends_at_ms = row.read("ends_at", cells.parse_instant_ms, problems)
        if number is None:
            named = False
        elif (first := numbers.setdefault(number, row.row)) != row.row:
            problems.add(row.file, row.row, "slot", f"slot {number} is there in row {first} too")
        if starts_at_ms is None or ends_at_ms is None or number is None:
            continue
        slot = Slot(SlotNumber(number), name or "", starts_at_ms, ends_at_ms)
        _check_slot(row, slot, slots, problems)
        slots.append(slot)
    return slots, frozenset(numbers) if named else None


def _check_slot(row: Row, slot: Slot, before: list[Slot], problems: Problems) -> None:
    """Check a slot by itself and against those before it, which are ordered by time."""
    length_ms = slot.ends_at_ms - slot.starts_at_ms
    if length_ms <= 0:
        problems.add(row.file, row.row, "ends_at", f"slot {slot.slot} ends before it starts")
    elif length_ms > _SLOT_MS_MAX:
        problems.add(row.file, row.row, "ends_at", f"slot {slot.slot} is longer than a day")
    for other in before:
        if slot.starts_at_ms < other.ends_at_ms and other.starts_at_ms < slot.ends_at_ms:
            message = f"slot {slot.slot} overlaps slot {other.slot}"
            problems.add(row.file, row.row, "starts_at", message)
    if before and slot.ends_at_ms <= before[-1].starts_at_ms:
        message = f"slot {slot.slot} is before slot {before[-1].slot}: order slots by time"
        problems.add(row.file, row.row, "starts_at", message)


def _read_sponsors(head: Row, files: Mapping[str, bytes], problems: Problems) -> Budget:
    """Read the budget and compare its total with the campaign's own (R54)."""
    parse_budget = cells.parse_yuan_within(1, MONEY_FEN_MAX)
    budget_fen = head.read("budget_yuan", parse_budget, problems)
    data = _read_named(head, "sponsors", files, problems)
    if data is None:
        return Budget("", complete=False)
    budget = read_budget(*data, problems)
    total_fen = budget.total_fen
    if budget_fen is not None and total_fen is not None and total_fen != budget_fen:
        stated, total = format_yuan(budget_fen), format_yuan(total_fen)
        message = f"{stated} yuan, but the deposits in {budget.file} are {total}"
        problems.add(head.file, head.cells["budget_yuan"].row, "budget_yuan", message)
    return budget


def _read_schemes(
    rows: list[Row], files: Mapping[str, bytes], rules: ScriptRules, problems: Problems
) -> tuple[list[Scheme], frozenset[str] | None]:
    """Return the schemes, and all scheme ids or None when one could not be read."""
    schemes = []
    ids: dict[str, int] = {}
    named = bool(rows)
    for row in rows:
        scheme = row.read("scheme", cells.parse_id, problems)
        title = row.read("title", cells.parse_name, problems)
        if scheme is None:
            named = False
        elif (first := ids.setdefault(scheme, row.row)) != row.row:
            problems.add(row.file, row.row, "scheme", f"{scheme!r} is there in row {first} too")
        allocations: tuple[Allocation, ...] = ()
        if (data := _read_named(row, "script", files, problems)) is not None:
            allocations = tuple(read_script(*data, rules, problems).allocations)
        schemes.append(Scheme(scheme or "", title or "", allocations))
    return schemes, frozenset(ids) if named else None


def _read_named(
    row: Row, column: str, files: Mapping[str, bytes], problems: Problems
) -> tuple[str, bytes] | None:
    """Return the name and bytes of the file that a cell names."""
    name = row.read(column, _parse_file_name, problems)
    if name is None:
        return None
    if name not in files:
        problems.add(row.file, row.cells[column].row, column, f"the file {name} is missing")
        return None
    return name, files[name]


def _read_active(head: Row, schemes: frozenset[str] | None, problems: Problems) -> str | None:
    active = head.read("active_scheme", cells.parse_id, problems)
    if active is not None and schemes is not None and active not in schemes:
        row = head.cells["active_scheme"].row
        known = ", ".join(sorted(schemes))
        problems.add(head.file, row, "active_scheme", f"{active!r} is no scheme; there are {known}")
    return active


def _check_numbers(head: Row, schemes: list[Scheme], key_cap_fen: int, problems: Problems) -> None:
    """Check that all schemes together fit into the ticket's numbers."""
    allocations = [
        one for scheme in schemes for one in scheme.allocations if one.max_fen <= key_cap_fen
    ]
    for problem in script.check_numbers(allocations, key_cap_fen, script.Numbers()):
        problems.add(head.file, head.row, problem.column, problem.message)


def _parse_file_name(text: str) -> str:
    if _FILE_NAME.fullmatch(text) is None:
        raise ValueError(f"{text!r} is not the plain name of a .csv or .yaml file beside this one")
    return text
