"""Is `hongbao report`: draw a run's data as one HTML file."""

import os
from pathlib import Path
from typing import Annotated

import typer

from hongbao.domain.errors import Rejected
from hongbao.report.data import read_report_data
from hongbao.report.page import build_page


def report(
    folder: Annotated[
        Path, typer.Argument(help="Folder with report.json, audit.json, samples.jsonl, …")
    ] = Path("out/report"),
    out: Annotated[
        Path | None, typer.Option("--out", help="The page. Default: report.html in the folder.")
    ] = None,
) -> None:
    """Draw the issue curve, latencies, money by sponsor, faults and residue of a run.

    The page needs nothing beside itself: it can be mailed.

    Examples:

        hongbao report

        hongbao report out/report --out new-year.html
    """
    typer.echo(write_report(folder, out or folder / "report.html"))


def write_report(folder: Path, page: Path) -> Path:
    """Write the page whole or not at all. Raises NotFound or Rejected."""
    html = build_page(read_report_data(folder))
    partial = page.with_name(f".{page.name}.partial")
    try:
        partial.write_text(html, "utf-8")
        os.replace(partial, page)
    except OSError as error:
        raise Rejected(f"{page} cannot be written: {error.strerror}", field="out") from error
    return page
