"""Owns drawing: a time chart and stacked bars as inline SVG; refuses to know what they mean.

Colours are CSS classes of the page (page.css), so one drawing serves light and dark.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 920, 64, 18, 26, 30

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """Is one line; `style` is a CSS class (c1 … c6), `dashed` marks plans and targets."""

    name: str
    style: str
    points: Sequence[Point]
    dashed: bool = False
    filled: bool = False


@dataclass(frozen=True)
class Band:
    """Is a named stretch of the time axis."""

    name: str
    start: float
    end: float


@dataclass(frozen=True)
class Mark:
    """Is an event on the time axis; `end` None means a moment. `label` is a letter or number."""

    label: str
    text: str
    start: float
    end: float | None = None


@dataclass(frozen=True)
class TimeChart:
    """Is lines over seconds of the run, with slots behind and events above them."""

    title: str
    unit: str
    end: float
    series: Sequence[Series]
    bands: Sequence[Band] = ()
    marks: Sequence[Mark] = ()
    height: int = 260
    logarithmic: bool = False

    def draw(self) -> str:
        values = [y for series in self.series for _, y in series.points]
        axis = _LogAxis(values) if self.logarithmic else _Axis(max(values, default=1.0))
        parts = [
            *self._draw_bands(),
            *self._draw_axes(axis),
            *(self._draw_series(series, axis) for series in self.series),
            *self._draw_marks(),
        ]
        return _figure(self.title, self.unit, self.series, self.height, parts)

    def _x(self, second: float) -> float:
        return LEFT + min(max(second / self.end, 0.0), 1.0) * (WIDTH - LEFT - RIGHT)

    def _y(self, share: float) -> float:
        return self.height - BOTTOM - share * (self.height - TOP - BOTTOM)

    def _draw_bands(self) -> list[str]:
        parts = []
        for index, band in enumerate(self.bands):
            x, width = self._x(band.start), self._x(band.end) - self._x(band.start)
            parts.append(
                f'<rect class="band{index % 2}" x="{x:.1f}" y="{TOP}" width="{width:.1f}" '
                f'height="{self.height - TOP - BOTTOM}"/>'
                f'<text class="slot" x="{x + 5:.1f}" y="{TOP + 14}">'
                f"{escape(band.name)}</text>"
            )
        return parts

    def _draw_axes(self, axis: "_Axis | _LogAxis") -> list[str]:
        parts = []
        for value in axis.ticks:
            y = self._y(axis.share(value))
            parts.append(
                f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
                f'<text class="tick end" x="{LEFT - 8}" y="{y + 4:.1f}">{short(value)}</text>'
            )
        step = nice_step(self.end, 8)
        for index in range(int(self.end / step) + 1):
            x = self._x(index * step)
            parts.append(
                f'<text class="tick mid" x="{x:.1f}" y="{self.height - 10}">'
                f"{short(index * step)} s</text>"
            )
        return parts

    def _draw_series(self, series: Series, axis: "_Axis | _LogAxis") -> str:
        if not series.points:
            return ""
        spots = [f"{self._x(x):.1f},{self._y(axis.share(y)):.1f}" for x, y in series.points]
        style = f"line {series.style}" + (" dashed" if series.dashed else "")
        line = f'<polyline class="{style}" points="{" ".join(spots)}"/>'
        if not series.filled:
            return line
        first, last = self._x(series.points[0][0]), self._x(series.points[-1][0])
        floor = self._y(0)
        area = f"{first:.1f},{floor} {' '.join(spots)} {last:.1f},{floor}"
        return f'<polygon class="area {series.style}" points="{area}"/>{line}'

    def _draw_marks(self) -> list[str]:
        parts = []
        right = -1.0
        row = 0
        for mark in self.marks:
            x = self._x(mark.start)
            row = (row + 1) % 2 if x - right < 17 else 0
            right = x
            if mark.end is not None:
                parts.append(
                    f'<rect class="outage" x="{x:.1f}" y="{TOP}" '
                    f'width="{max(1.0, self._x(mark.end) - x):.1f}" '
                    f'height="{self.height - TOP - BOTTOM}"/>'
                )
            y = TOP - 12 + row * 17
            parts.append(
                f'<g class="mark"><title>{escape(mark.text)}</title>'
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y + 8}" y2="{self.height - BOTTOM}"/>'
                f'<circle cx="{x:.1f}" cy="{y}" r="8.5"/>'
                f'<text x="{x:.1f}" y="{y + 4}">{escape(mark.label)}</text></g>'
            )
        return parts


@dataclass(frozen=True)
class Bars:
    """Is horizontal stacked bars: one row a name, one part a series."""

    title: str
    unit: str
    parts: Sequence[tuple[str, str]]  # name, style
    rows: Sequence[tuple[str, Sequence[float], str]]  # name, values by part, label at the end

    def draw(self) -> str:
        left, right = 190, 130
        height = 14 + 26 * len(self.rows)
        most = max((sum(values) for _, values, _ in self.rows), default=0) or 1.0
        scale = (WIDTH - left - right) / most
        drawn = []
        for index, (name, values, label) in enumerate(self.rows):
            y, x = 6 + 26 * index, float(left)
            drawn.append(
                f'<text class="row end" x="{left - 10}" y="{y + 14}">{escape(name)}</text>'
            )
            for (part, style), value in zip(self.parts, values, strict=True):
                width = value * scale
                if value > 0:
                    drawn.append(
                        f'<rect class="bar {style}" x="{x:.1f}" y="{y}" width="{width:.2f}" '
                        f'height="18"><title>{escape(name)}, {escape(part)}: {value:,.2f}'
                        f"</title></rect>"
                    )
                x += width
            drawn.append(f'<text class="tick" x="{x + 8:.1f}" y="{y + 14}">{escape(label)}</text>')
        series = [Series(name, style, ()) for name, style in self.parts]
        return _figure(self.title, self.unit, series, height, drawn, square=True)


class _Axis:
    """Maps values from zero to shares of the height."""

    def __init__(self, most: float) -> None:
        step = nice_step(most or 1.0, 5)
        self.top = step * max(1, math.ceil((most or 1.0) / step - 1e-9))
        self.ticks = [step * index for index in range(round(self.top / step) + 1)]

    def share(self, value: float) -> float:
        return value / self.top


class _LogAxis:
    """Maps positive values to shares of the height, by powers of ten."""

    def __init__(self, values: Sequence[float]) -> None:
        positive = [value for value in values if value > 0] or [1.0, 10.0]
        self._low = math.floor(math.log10(min(positive)))
        self._high = max(self._low + 1, math.ceil(math.log10(max(positive))))
        self.ticks = [10.0**power for power in range(self._low, self._high + 1)]

    def share(self, value: float) -> float:
        if value <= 0:
            return 0.0
        return (math.log10(value) - self._low) / (self._high - self._low)


def nice_step(most: float, count: int) -> float:
    """Return 1, 2 or 5 times a power of ten that cuts `most` into about `count` parts."""
    raw = most / count
    power = 10.0 ** math.floor(math.log10(raw))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)


def short(value: float) -> str:
    """Write a number in few characters: 1.2M, 40k, 0.5."""
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{letter}"
    return f"{value:.3g}"


def _figure(
    title: str,
    unit: str,
    series: Sequence[Series],
    height: int,
    parts: Sequence[str],
    *,
    square: bool = False,
) -> str:
    swatch = "square" if square else "stroke"
    keys = "".join(
        f'<span class="key"><i class="{swatch} {s.style}{" dashed" if s.dashed else ""}"></i>'
        f"{escape(s.name)}</span>"
        for s in series
    )
    return (
        f'<figure><figcaption><b>{escape(title)}</b><span class="unit">{escape(unit)}</span>'
        f'<span class="keys">{keys}</span></figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg></figure>"
    )
