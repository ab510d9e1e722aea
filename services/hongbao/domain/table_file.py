"""Owns reading a table (CSV, or a YAML list) as rows of text; refuses to know what it means.

A CSV is comma-separated UTF-8 with a header; the mark and the line ends that Excel writes are
taken. What could be read in two ways is a problem with its row and column, never a guess.
"""

import csv
import io
from dataclasses import dataclass, field
from typing import Final

from hongbao.domain.cells import unfit_characters
from hongbao.domain.problem import Problems
from hongbao.domain.yaml_file import Cell, Row, decode, read_tree, rows_of

ROWS_MAX: Final = (1 << 16) - 1  # a row becomes a batch, and batches are numbered in 16 bits
CELL_CHARS_MAX: Final = 1000
COLUMNS_MAX: Final = 100


@dataclass(slots=True)
class Table:
    """Is the rows that could be read; `complete` says that no row was lost."""

    rows: list[Row] = field(default_factory=list)
    complete: bool = True


def read_table(file: str, data: bytes, columns: tuple[str, ...], problems: Problems) -> Table:
    """Return the rows of a table that needs exactly these columns, in any order."""
    before = problems.count
    if file.endswith((".yaml", ".yml")):
        table = _read_yaml(file, data, columns, problems)
    else:
        text = decode(file, data, problems)
        table = Table() if text is None else _read_csv(file, text, columns, problems)
    if len(table.rows) > ROWS_MAX:
        problems.add(file, 0, "", f"the table has more than {ROWS_MAX:,} rows")
        return Table(complete=False)
    if not table.rows and problems.count == before:
        problems.add(file, 0, "", "the table has no rows")
    table.complete &= bool(table.rows)
    return table


def _read_yaml(file: str, data: bytes, columns: tuple[str, ...], problems: Problems) -> Table:
    node = read_tree(file, data, problems)
    if node is None:
        return Table()
    rows = rows_of(file, node, frozenset(columns), frozenset(), problems)
    return Table(rows, len(rows) == len(node.value))


def _read_csv(file: str, text: str, columns: tuple[str, ...], problems: Problems) -> Table:
    # strict: an open quote at the end of the file is an error, not a cell that ate the rest
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    table = Table()
    rows = table.rows
    header: list[str] | None = None
    line = 1
    try:
        for cells in reader:
            if not cells:
                pass  # an empty line means nothing
            elif header is None and len(cells) > COLUMNS_MAX:
                problems.add(file, line, "", f"the header has {len(cells):,} columns")
                return Table(complete=False)
            elif header is None:
                header = cells
                _check_header(file, line, header, columns, problems)
            elif len(cells) != len(header):
                count = f"{len(cells)} cells, the header {len(header)}"
                problems.add(file, line, "", f"the row has {count}")
                table.complete = False
            elif len(rows) > ROWS_MAX:
                break
            else:
                rows.append(_read_row(file, line, header, cells, columns, problems))
            line = reader.line_num + 1
    except csv.Error as error:
        problems.add(file, line, "", f"not CSV from here on: {error}")
        table.complete = False
    if header is None and text.strip() == "":
        problems.add(file, 0, "", "the file is empty")
    return table


def _check_header(
    file: str, line: int, header: list[str], columns: tuple[str, ...], problems: Problems
) -> None:
    for index, column in enumerate(header):
        if column in header[:index]:
            problems.add(file, line, column, "the column is there twice")
        elif column not in columns:
            known = ", ".join(columns)
            problems.add(file, line, column[:40], f"unknown column; the columns are {known}")
    for column in columns:
        if column not in header:
            problems.add(file, line, column, "the column is missing")


def _read_row(
    file: str,
    line: int,
    header: list[str],
    cells: list[str],
    columns: tuple[str, ...],
    problems: Problems,
) -> Row:
    fit = {}
    for column, text in zip(header, cells, strict=True):
        if column not in columns or column in fit:
            continue  # told at the header
        if len(text) > CELL_CHARS_MAX:
            problems.add(file, line, column, f"the cell has {len(text):,} characters")
        elif why := unfit_characters(text):
            problems.add(file, line, column, why)
        else:
            fit[column] = Cell(line, text)
    return Row(file, line, fit)
