"""Is `hongbao report`: draw a run's data as one HTML file."""

import asyncio
import os
from pathlib import Path
from typing import Annotated

import typer

from hongbao.cli import stores
from hongbao.cli.audit import audit_opened
from hongbao.client.acknowledged import read_acknowledged
from hongbao.domain.errors import Rejected
from hongbao.domain.timeline import Timeline
from hongbao.report.data import ReportData, read_lines, read_report_data
from hongbao.report.facts import build_facts, build_settle_rows, find_end_ms
from hongbao.report.page import build_page


def report(
    folder: Annotated[
        Path, typer.Argument(help="The folder of a run, or of a demo's report (report.json, …).")
    ] = stores.DEFAULT_RUN,
    out: Annotated[
        Path | None, typer.Option("--out", help="The page. Default: report.html in the folder.")
    ] = None,
) -> None:
    """Draw the issue curve, latencies, money by sponsor, faults and residue of a run.

    A run is audited for it; it may go on meanwhile. Issue curve and latencies are what clients
    saw: they are drawn where `hongbao load --out RUN/report` wrote them down. A demo's run is
    drawn as the demo left it. The page needs nothing beside itself: it can be mailed.

    Examples:

        hongbao report

        hongbao report out/demo --out new-year.html
    """
    page = out or folder / "report.html"
    typer.echo(_write_page(_read_data(folder), page))


def write_report(folder: Path, page: Path) -> Path:
    """Draw a report folder; write the page whole or not at all. Raises NotFound or Rejected."""
    return _write_page(read_report_data(folder), page)


def _read_data(folder: Path) -> ReportData:
    for known in (folder, folder / "report"):
        if (known / "report.json").exists():
            return read_report_data(known)
    return asyncio.run(_read_run(folder))


async def _read_run(run: Path) -> ReportData:
    """Audit a run and lay out what its report shows. Raises NotFound when there is none."""
    seen = run / "report"
    promises = seen / "acknowledged.jsonl"
    serials = [one.packet for one in read_acknowledged(promises)] if promises.exists() else []
    async with stores.open_stores(run) as opened:
        campaign = opened.campaign
        audit = (await audit_opened(opened, serials)).document()
        told = await opened.coordination.read(f"campaigns/{campaign.campaign}/timeline")
    timeline, settle = Timeline.from_json(told.value), build_settle_rows(audit)
    ended_at_ms = find_end_ms(timeline, settle)
    return ReportData(
        facts=build_facts(audit, campaign, timeline, ended_at_ms=ended_at_ms),
        audit=audit,
        samples=read_lines(seen / "samples.jsonl"),
        settle=settle,
        faults=read_lines(seen / "faults.jsonl"),
    )


def _write_page(data: ReportData, page: Path) -> Path:
    html = build_page(data)
    partial = page.with_name(f".{page.name}.partial")
    try:
        partial.write_text(html, "utf-8")
        os.replace(partial, page)
    except OSError as error:
        raise Rejected(f"{page} cannot be written: {error.strerror}", field="out") from error
    return page
