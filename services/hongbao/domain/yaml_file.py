"""Owns reading YAML as text with line numbers; refuses to let YAML guess any type.

Scalars stay the text that was written (an amount never becomes a float), aliases, tags and
deep nesting are refused, so a small file cannot become a large tree.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

import yaml

from hongbao.domain.cells import unfit_characters
from hongbao.domain.problem import Problems

DEPTH_MAX: Final = 6
NODES_MAX: Final = 200_000  # a node takes a kilobyte; larger tables are CSV
FILE_BYTES_MAX: Final = 8 << 20
_LOADER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Cell:
    """Is one text of an input file and the line it stands on."""

    row: int
    text: str


@dataclass(frozen=True, slots=True)
class Row:
    """Is one record of an input file: a line of a CSV, or one mapping of a YAML list."""

    file: str
    row: int
    cells: dict[str, Cell]

    def read(self, column: str, parse: Callable[[str], T], problems: Problems) -> T | None:
        """Return the parsed cell, or None after telling why not (a missing cell: told before)."""
        cell = self.cells.get(column)
        if cell is None:
            return None
        try:
            return parse(cell.text)
        except ValueError as error:
            problems.add(self.file, cell.row, column, str(error))
            return None

    def read_or(self, column: str, parse: Callable[[str], T], default: T, problems: Problems) -> T:
        """Return the parsed cell of an optional column."""
        value = self.read(column, parse, problems) if column in self.cells else default
        return default if value is None else value


def decode(file: str, data: bytes, problems: Problems) -> str | None:
    """Return the text of a file: UTF-8, with or without the mark that Excel writes before it."""
    if len(data) > FILE_BYTES_MAX:
        problems.add(file, 0, "", f"the file is larger than {FILE_BYTES_MAX:,} bytes")
        return None
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        problems.add(file, 1, "", "the file is UTF-16: save it as UTF-8")
        return None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = data.count(b"\n", 0, error.start) + 1
        problems.add(
            file, row, "", f"byte 0x{data[error.start]:02x} is not UTF-8: save it as UTF-8"
        )
        return None


def read_tree(file: str, data: bytes, problems: Problems) -> yaml.Node | None:
    """Return the document's node tree, or None after telling why not."""
    text = decode(file, data, problems)
    if text is None:
        return None
    try:
        refusal = _refusal(text)
        if refusal is None:
            node = yaml.compose(text, Loader=_LOADER)
            refusal = (1, "the file is empty") if node is None else None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        refusal = (mark.line + 1 if mark else 0, f"not YAML: {error.problem or error.context}")
    except yaml.YAMLError as error:
        refusal = (0, f"not YAML: {' '.join(str(error).split())}")
    if refusal is not None:
        problems.add(file, refusal[0], "", refusal[1])
        return None
    return node


def rows_of(
    file: str,
    node: yaml.Node,
    columns: frozenset[str],
    optional: frozenset[str],
    problems: Problems,
) -> list[Row]:
    """Return the mappings of a list as rows; `columns` are all needed."""
    if not isinstance(node, yaml.SequenceNode):
        problems.add(file, node.start_mark.line + 1, "", "a list is needed here")
        return []
    rows = (row_of(file, item, columns, optional, problems) for item in node.value)
    return [row for row in rows if row is not None]


def row_of(
    file: str,
    node: yaml.Node,
    columns: frozenset[str],
    optional: frozenset[str],
    problems: Problems,
) -> Row | None:
    """Return the scalars of one mapping as a row."""
    fields = fields_of(file, node, columns, optional, problems)
    if fields is None:
        return None
    return Row(file, node.start_mark.line + 1, cells_of(file, fields, problems))


def cells_of(file: str, fields: dict[str, yaml.Node], problems: Problems) -> dict[str, Cell]:
    """Return the texts of the fields that are single values, after telling the others."""
    cells = {}
    for column, value in fields.items():
        row = value.start_mark.line + 1
        if not isinstance(value, yaml.ScalarNode):
            problems.add(file, row, column, "a single value is needed here")
        elif why := unfit_characters(value.value):
            problems.add(file, row, column, why)
        else:
            cells[column] = Cell(row, value.value)
    return cells


def fields_of(
    file: str,
    node: yaml.Node,
    columns: frozenset[str],
    optional: frozenset[str],
    problems: Problems,
) -> dict[str, yaml.Node] | None:
    """Return a mapping's values by key, after telling unknown, repeated and missing keys."""
    start = node.start_mark.line + 1
    if not isinstance(node, yaml.MappingNode):
        problems.add(file, start, "", "a mapping of keys and values is needed here")
        return None
    fields: dict[str, yaml.Node] = {}
    for key, value in node.value:
        row, name = key.start_mark.line + 1, str(key.value)
        if name not in columns | optional:
            problems.add(file, row, name[:40], "unknown key")
        elif name in fields:
            problems.add(file, row, name, "the key is there twice")
        else:
            fields[name] = value
    for name in sorted(columns - fields.keys()):
        problems.add(file, start, name, "the key is missing")
    return fields


def _refusal(text: str) -> tuple[int, str] | None:
    """Return why the tree must not be built, from the flat event stream."""
    depth = nodes = 0
    for event in yaml.parse(text, Loader=_LOADER):
        row = event.start_mark.line + 1 if event.start_mark else 0
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            return row, "YAML anchors and aliases are not taken"
        if isinstance(event, yaml.NodeEvent) and getattr(event, "tag", None):
            return row, "YAML tags are not taken"
        nodes += isinstance(event, yaml.NodeEvent)
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > DEPTH_MAX:
            return row, f"nested deeper than {DEPTH_MAX} levels"
        if nodes > NODES_MAX:
            return row, f"more than {NODES_MAX:,} values: write large tables as CSV"
    return None
