"""Owns the page: one HTML file that needs nothing beside itself."""

from html import escape
from importlib.resources import files

from hongbao.domain.errors import Rejected
from hongbao.report.chart import Mark
from hongbao.report.data import ReportData
from hongbao.report.plots import FEN, build_plots, fault_marks

_MUST_BE_ZERO = ("paid_twice", "claims_lost", "quarantined_fen")
_TILES = (
    ("minted", "minted_fen", "fen"),
    ("opened", "opened_fen", "fen"),
    ("credited", "credited_fen", "fen"),
    ("refunded", "refunded_fen", "fen"),
    ("packets minted", "packets_minted", ""),
    ("packets opened", "packets_opened", ""),
    ("paid twice", "paid_twice", ""),
    ("acknowledged claims lost", "claims_lost", ""),
    ("quarantined", "quarantined_fen", "fen"),
    ("pending", "pending_fen", "fen"),
    ("residue packets", "residue_packets", ""),
    ("open → credited, p99", "credit_p99_s", "s"),
)


def build_page(data: ReportData) -> str:
    """Return the report as HTML. Raises Rejected when the data lacks a field it needs."""
    try:
        body = "".join(
            (_build_head(data), _build_tiles(data), _build_plots(data), _build_tables(data))
        )
    except KeyError as error:
        raise Rejected(f"the report's data lacks {error}") from error
    css = files("hongbao.report").joinpath("page.css").read_text("utf-8")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(data.facts['title'])}</title><style>{css}</style></head>"
        f"<body><main>{body}</main></body></html>\n"
    )


def _build_head(data: ReportData) -> str:
    facts = data.facts
    equations = data.audit["equations"]
    holds = equations == "hold"
    verdict = "all money equations hold" if holds else f"broken: {', '.join(equations)}"
    length_s = data.second(data.end_ms)
    seed = f" · seed {facts['seed']}" if "seed" in facts else ""
    return (
        f"<header><h1>{escape(facts['title'])}</h1>"
        f"<p>campaign {escape(facts['campaign'])} · {length_s:.0f} s{seed} · "
        f"{len(facts['slots'])} slots · {len(facts['sponsors'])} sponsors · "
        f"{len(data.faults)} faults</p>"
        f'<span class="verdict{"" if holds else " broken"}">{escape(verdict)}</span></header>'
    )


def _build_tiles(data: ReportData) -> str:
    tiles = []
    for name, key, unit in _TILES:
        value = data.audit[key]
        style = ""
        if key in _MUST_BE_ZERO:
            style = " bad" if value else " good"
        tiles.append(
            f'<div class="tile{style}"><span>{name}</span>'
            f"<strong>{_show(value, unit)}</strong></div>"
        )
    return f'<section class="tiles">{"".join(tiles)}</section>'


def _show(value: float | None, unit: str) -> str:
    if value is None:
        return "–"
    if unit == "fen":
        return f"¥{value / FEN:,.2f}"
    return f"{value:.2f} s" if unit == "s" else f"{value:,}"


def _build_plots(data: ReportData) -> str:
    return "<h2>How it went</h2>" + "".join(build_plots(data))


def _build_tables(data: ReportData) -> str:
    parts = []
    marks = fault_marks(data)
    if marks:
        rows = [
            [f'<span class="dot">{m.label}</span>', f"{m.start:.1f} s", _length(m), escape(m.text)]
            for m in marks
        ]
        parts.append(_table("Faults and interventions", ["", "at", "for", "what"], rows, "nn"))
    sponsors = sorted(data.facts["sponsors"], key=lambda row: -int(row["minted_fen"]))
    keys = ("minted_fen", "credited_fen", "pending_fen", "quarantined_fen", "unclaimed_fen")
    rows = [[escape(row["sponsor"]), *(_show(row[key], "fen") for key in keys)] for row in sponsors]
    heads = ["sponsor", *(key.removesuffix("_fen") for key in keys)]
    parts.append(_table("Sponsors", heads, rows, "n" * len(keys)))
    for title, values in (
        ("Figures", data.facts.get("figures", {})),
        ("Machine", data.facts.get("machine", {})),
    ):
        if values:
            rows = [[escape(str(name)), escape(str(value))] for name, value in values.items()]
            parts.append(_table(title, ["", ""], rows, ""))
    return "".join(parts)


def _length(mark: Mark) -> str:
    return "" if mark.end is None else f"{mark.end - mark.start:.1f} s"


def _table(title: str, heads: list[str], rows: list[list[str]], numeric: str) -> str:
    """Build a table of cells that are HTML already; `numeric` marks columns after the first."""

    def cells(tag: str, row: list[str]) -> str:
        styles = ["", *(' class="n"' for _ in numeric), *[""] * len(row)]
        return "".join(f"<{tag}{styles[i]}>{cell}</{tag}>" for i, cell in enumerate(row))

    head = f"<tr>{cells('th', heads)}</tr>" if any(heads) else ""
    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f'<h2>{title}</h2><div class="card scroll"><table>{head}{body}</table></div>'
