"""Owns which plots a report has, and how they follow from its data; all functions are pure."""

from collections.abc import Callable, Sequence
from typing import Final

from hongbao.report.chart import Band, Bars, Mark, Point, Series, TimeChart
from hongbao.report.data import ReportData, Row

FEN = 100
ANSWERS = frozenset(("PACKET", "NOTHING", "THANKS_PAGE", "SLOW_DOWN", "NOT_STARTED", "ENDED"))

DWARFED: Final = 5.0
Pick = Callable[[Row], float]


def fault_marks(data: ReportData) -> list[Mark]:
    """Return the faults in order of time, numbered from 1."""
    return [
        Mark(
            str(number),
            fault["text"],
            data.second(fault["at_ms"]),
            data.second(fault["until_ms"]) if fault.get("until_ms") else None,
        )
        for number, fault in enumerate(sorted(data.faults, key=lambda f: f["at_ms"]), 1)
    ]


def slot_bands(data: ReportData) -> list[Band]:
    return [
        Band(slot["name"], data.second(slot["starts_at_ms"]), data.second(slot["ends_at_ms"]))
        for slot in data.facts.get("slots", [])
    ]


def plan_curve(data: ReportData) -> list[Point]:
    """Return what the plan wants issued by when: each slot's packets evenly over the slot."""
    points: list[Point] = [(0.0, 0.0)]
    issued = 0
    for slot in sorted(data.facts.get("slots", []), key=lambda slot: int(slot["starts_at_ms"])):
        points.append((data.second(slot["starts_at_ms"]), float(issued)))
        issued += slot["packets"]
        points.append((data.second(slot["ends_at_ms"]), float(issued)))
    return [*points, (data.second(data.end_ms), float(issued))]


def build_plots(data: ReportData) -> list[str]:
    """Return the drawn figures in the order of the page."""
    plots: list[TimeChart | Bars] = []
    if data.samples:
        plots += [issue_plot(data), rate_plot(data), latency_plot(data)]
    if data.settle:
        plots.append(credit_plot(data))
    if data.facts.get("sponsors"):
        plots.append(sponsor_bars(data.facts["sponsors"]))
    if data.facts.get("slots"):
        plots.append(slot_bars(data.facts["slots"]))
    return [plot.draw() for plot in plots]


def issue_plot(data: ReportData) -> TimeChart:
    won = _running(data, lambda sample: sample["shakes"].get("PACKET", 0))
    opened = _running(data, lambda sample: sample["opens"].get("OPENED", 0))
    series = [
        Series("plan", "c5", plan_curve(data), dashed=True),
        Series("packets issued to clients", "c1", won, filled=True),
        Series("opened", "c2", opened),
    ]
    credited = [(data.second(row["at_ms"]), float(row["credited"])) for row in data.settle]
    if credited:
        series.append(Series("credited", "c6", credited))
    # A machine's few simulated users are far behind a plan for millions: show both all the same.
    plan, done = (max((y for _, y in one.points), default=0.0) for one in series[:2])
    return _time_chart(
        data,
        "Issue against plan",
        "packets, cumulative",
        series,
        height=320,
        logarithmic=plan > DWARFED * done > 0,
    )


def rate_plot(data: ReportData) -> TimeChart:
    series = [
        Series("wanted", "c5", _rates(data, lambda s: s["wanted"]), dashed=True),
        Series("answered", "c3", _rates(data, _answered), filled=True),
        Series("packets", "c1", _rates(data, lambda s: s["shakes"].get("PACKET", 0))),
        Series("opens", "c2", _rates(data, lambda s: s["opens"].get("OPENED", 0))),
        Series("shed or lost", "c4", _rates(data, _failed)),
    ]
    return _time_chart(data, "Shakes and opens", "per second", series)


def latency_plot(data: ReportData) -> TimeChart:
    series = [
        Series(f"{name} {percent}", style, _latencies(data, kind, percent), dashed=percent == "p50")
        for name, kind, style in (("shake", "shake_latency", "c3"), ("open", "open_latency", "c2"))
        for percent in ("p50", "p99")
    ]
    return _time_chart(
        data, "Latency, from the time the call was due", "ms", series, logarithmic=True
    )


def credit_plot(data: ReportData) -> TimeChart:
    def points(name: str) -> list[Point]:
        return [(data.second(row["at_ms"]), row[name]) for row in data.settle if row[name]]

    series = [
        Series("p50", "c6", points("p50_s"), dashed=True),
        Series("p99", "c6", points("p99_s"), filled=True),
    ]
    return _time_chart(data, "Credit latency, open → credited", "s", series, height=220)


def sponsor_bars(sponsors: Sequence[Row]) -> Bars:
    parts: list[tuple[str, str, Pick]] = [
        ("credited", "c6", lambda row: row["credited_fen"]),
        ("pending", "c2", lambda row: row["pending_fen"]),
        ("quarantined", "c1", lambda row: row["quarantined_fen"]),
        ("refunded", "c4", lambda row: row["refunded_fen"]),
        ("unclaimed", "c5", lambda row: row["unclaimed_fen"] - row["refunded_fen"]),
    ]
    rows = sorted(sponsors, key=lambda row: -int(row["minted_fen"]))
    return Bars(
        "Money by sponsor",
        "yuan of what was minted",
        [(name, style) for name, style, _ in parts],
        [
            (
                row["sponsor"],
                [value(row) / FEN for _, _, value in parts],
                f"{row['minted_fen'] / FEN:,.2f}",
            )
            for row in rows
        ],
    )


def slot_bars(slots: Sequence[Row]) -> Bars:
    """Show what became of each slot's packets; residue is what was reserved and lost by kills."""
    return Bars(
        "Packets by slot",
        "residue: reserved by an instance that died, issued to nobody",
        [("opened", "c2"), ("issued, not opened", "c3"), ("residue", "c1"), ("not issued", "c5")],
        [
            (
                f"{slot['name']} · scheme {slot['scheme']}",
                [
                    slot["opened"],
                    max(0, slot["issued"] - slot["opened"]),
                    slot["residue_packets"],
                    max(0, slot["packets"] - slot["issued"] - slot["residue_packets"]),
                ],
                f"{slot['packets']:,} · residue {slot['residue_packets']:,}",
            )
            for slot in slots
        ],
    )


def _time_chart(
    data: ReportData,
    title: str,
    unit: str,
    series: Sequence[Series],
    *,
    height: int = 260,
    logarithmic: bool = False,
) -> TimeChart:
    return TimeChart(
        title,
        unit,
        data.second(data.end_ms),
        series,
        slot_bands(data),
        fault_marks(data),
        height,
        logarithmic,
    )


def _running(data: ReportData, pick: Pick) -> list[Point]:
    total, points = 0.0, []
    for sample in data.samples:
        total += pick(sample)
        points.append((data.second(sample["at_ms"]), total))
    return points


def _rates(data: ReportData, pick: Pick) -> list[Point]:
    return [
        (data.second(sample["at_ms"]), pick(sample) / sample["interval_s"])
        for sample in data.samples
        if sample["interval_s"] > 0
    ]


def _latencies(data: ReportData, kind: str, percent: str) -> list[Point]:
    return [
        (data.second(sample["at_ms"]), sample[kind][f"{percent}_ms"])
        for sample in data.samples
        if sample[kind]["count"]
    ]


def _answered(sample: Row) -> float:
    return float(sum(count for name, count in sample["shakes"].items() if name in ANSWERS))


def _failed(sample: Row) -> float:
    failed = sum(count for name, count in sample["shakes"].items() if name not in ANSWERS)
    return float(failed + sum(sample["open_repeats"].values()))
