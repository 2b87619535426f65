"""Charts as SVG, with colours from the style sheet of the page so that they suit its light and dark themes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from math import ceil, floor, inf, isfinite, log10, nan

import numpy as np
from jaxtyping import Float64

from c2fmae.core.metric_columns import MetricColumns
from c2fmae.report.drawing import SERIES_COLOURS, choose_ticks

Points = Sequence[tuple[float, float]] | Float64[np.ndarray, "points 2"]

_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 450, 20, 200  # the area that curves are drawn in
_BARS_LEFT, _BARS_RIGHT, _BAR_PITCH, _GROUP_GAP = 150, 410, 14, 12
_HEAT_NAMES, _CELL_WIDTH, _CELL_HEIGHT = 150, 44, 26  # the space for names of a heat map, and a cell
_FINE_FROM_POINTS = 200  # longer curves are drawn with a thinner line


@dataclass(frozen=True)
class LineChart:
    """Named curves of points (x, y) with ascending x; a non-finite y is a gap."""

    title: str
    series: Mapping[str, Points]
    x_label: str = "step"
    y_label: str = ""
    is_log: bool = False
    """Use a logarithmic y axis; values of 0 and below are gaps too."""
    y_range: tuple[float, float] | None = None
    """Limits of the y axis, to compare several charts; by default they follow the data."""
    names_last_values: bool = True
    """Whether the legend has the last value of each curve."""

    def to_html(self) -> str:
        """Return a figure, or a note if there is no finite value."""
        curves = [_to_array(points, is_log=self.is_log) for points in self.series.values()]
        finite = np.concatenate([np.empty((0, 2)), *(points[np.isfinite(points[:, 1])] for points in curves)])
        if not len(finite):
            return f'<figure><h3>{escape(self.title)}</h3><p class="note">No values yet.</p></figure>'
        (x0, low), (x1, high) = finite.min(axis=0).tolist(), finite.max(axis=0).tolist()
        x0, x1 = _padded_range(x0, x1)
        y0, y1 = self.y_range or _padded_range(self._scale_y(low), self._scale_y(high))
        per_x, per_y = (_RIGHT - _LEFT) / (x1 - x0), (_BOTTOM - _TOP) / (y1 - y0)
        elements = [f'<text y="10">{escape(self.y_label)}</text>']
        for tick in self._y_ticks(y0, y1):
            y = _BOTTOM - (self._scale_y(tick) - y0) * per_y
            elements.append(f'<path class="rule" d="M{_LEFT} {y:.1f}H{_RIGHT}"/>')
            elements.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{format_tick(tick)}</text>')
        for tick in choose_ticks(x0, x1):
            x = _LEFT + (tick - x0) * per_x
            elements.append(f'<text x="{x:.1f}" y="{_BOTTOM + 18}" text-anchor="middle">{format_tick(tick)}</text>')
        elements.append(f'<text x="{_RIGHT}" y="{_BOTTOM + 36}" text-anchor="end">{escape(self.x_label)}</text>')
        for number, points in enumerate(curves):
            pixels = [
                (_LEFT + (x - x0) * per_x, _BOTTOM - (self._scale_y(y) - y0) * per_y)
                for x, y in downsample_points(points)
            ]
            elements.append(f'<g class="s{number % len(SERIES_COLOURS)}">{_svg_paths(pixels)}</g>')
        return _chart_html(self.title, self._legend_entries(), elements, height=242)

    def _scale_y(self, y: float) -> float:
        return y if not self.is_log else log10(y) if y > 0 else nan

    def _y_ticks(self, low: float, high: float) -> list[float]:
        if not self.is_log:
            return choose_ticks(low, high)
        powers = [10.0**power for power in range(floor(low), ceil(high) + 1)]
        for multiples in ((1,), (1, 2, 5)):
            tick_values = [m * power for power in powers for m in multiples if low <= log10(m * power) <= high]
            if len(tick_values) > 2:
                return tick_values
        return choose_ticks(10**low, 10**high)

    def _legend_entries(self) -> list[str]:
        """Return the name of each curve with its last finite value."""
        values = [_to_array(points)[:, 1] for points in self.series.values()]
        last = [curve[np.isfinite(curve)][-1:].tolist() or [nan] for curve in values]
        return [
            _legend_entry(number, name, f" <b>{value:.4g}</b>" if self.names_last_values else "")
            for number, (name, [value]) in enumerate(zip(self.series, last, strict=True))
        ]


@dataclass(frozen=True)
class BarChart:
    """Groups of horizontal bars from 0 to 100, a bar of its own colour for each series; None leaves a bar out."""

    title: str
    groups: Sequence[tuple[str, Sequence[float | None]]]
    """Each group's name and its values, one for each series."""
    series_names: Sequence[str]

    def to_html(self) -> str:
        """Return a figure."""
        elements, y = [], 0
        for name, values in self.groups:
            middle = y + _BAR_PITCH * len(values) / 2 + 4
            elements.append(
                f'<text x="{_BARS_LEFT - 10}" y="{middle:.0f}" text-anchor="end">{escape(shorten_name(name))}</text>'
            )
            for number, value in enumerate(values):
                if value is not None:
                    width = (_BARS_RIGHT - _BARS_LEFT) * min(max(value, 0), 100) / 100
                    elements.append(
                        f'<rect class="s{number % len(SERIES_COLOURS)}" x="{_BARS_LEFT}" y="{y + 1}" '
                        f'width="{width:.1f}" height="{_BAR_PITCH - 3}"/>'
                    )
                    elements.append(f'<text x="{_BARS_LEFT + width + 6:.1f}" y="{y + 11}">{value:.1f}</text>')
                y += _BAR_PITCH
            y += _GROUP_GAP
        legend = [_legend_entry(number, name) for number, name in enumerate(self.series_names)]
        return _chart_html(self.title, legend, elements, height=y)


@dataclass(frozen=True)
class HeatMap:
    """A matrix of named rows and columns, darker for higher values; None is an empty cell."""

    title: str
    row_names: Sequence[str]
    column_names: Sequence[str]
    values: Sequence[Sequence[float | None]]
    footnote: str = ""

    def to_html(self) -> str:
        """Return a figure with the value in each cell; names of columns are slanted."""
        highest = max([value for row in self.values for value in row if value is not None], default=0) or 1
        left, top = _HEAT_NAMES + 10, _HEAT_NAMES
        elements = [
            f'<text x="{_HEAT_NAMES}" y="{top + _CELL_HEIGHT * (number + 0.5) + 4:.0f}" text-anchor="end">'
            f"{escape(shorten_name(name))}</text>"
            for number, name in enumerate(self.row_names)
        ]
        for number, name in enumerate(self.column_names):
            x = left + _CELL_WIDTH * (number + 0.5)
            elements.append(
                f'<text transform="translate({x:.0f} {top - 8}) rotate(-50)">{escape(shorten_name(name))}</text>'
            )
        for i, row in enumerate(self.values):
            for j, value in enumerate(row):
                if value is not None:
                    x, y = left + _CELL_WIDTH * j, top + _CELL_HEIGHT * i
                    elements.append(
                        f'<rect class="s0" fill-opacity="{0.75 * value / highest:.2f}" x="{x + 1}" y="{y + 1}" '
                        f'width="{_CELL_WIDTH - 2}" height="{_CELL_HEIGHT - 2}"/>'
                        f'<text class="cell" x="{x + _CELL_WIDTH // 2}" y="{y + _CELL_HEIGHT // 2 + 4}" '
                        f'text-anchor="middle">{value:.1f}</text>'
                    )
        width, height = left + _CELL_WIDTH * len(self.column_names) + 60, top + _CELL_HEIGHT * len(self.row_names)
        return (
            f'<figure><figcaption>{escape(self.title)}</figcaption><div class="wide">'
            f'<svg class="heat" style="width: {width / 16:.1f}rem" viewBox="0 0 {width} {height}" role="img" '
            f'aria-label="{escape(self.title)}">{"".join(elements)}</svg></div>'
            f'<p class="note">{escape(self.footnote)}</p></figure>'
        )


def shorten_name(name: str, length: int = 22) -> str:
    """Return a name of at most `length` characters for an axis.

    >>> shorten_name("traffic light, traffic signal"), shorten_name("sky")
    ('traffic light, traffi…', 'sky')
    """
    return name if len(name) <= length else f"{name[: length - 1].rstrip()}…"


def chart_metrics(columns: MetricColumns, title: str, keys: Mapping[str, str], *, is_log: bool = False) -> LineChart:
    """Return a chart of metrics over steps; `keys` maps the name of each curve to its key, absent ones are left out."""
    series = {name: columns.points(key) for name, key in keys.items()}
    return LineChart(title, {name: points for name, points in series.items() if len(points)}, is_log=is_log)


def downsample_points(points: Points, max_points: int = 500) -> list[tuple[float, float]]:
    """Return at most `max_points` points: the minimum, the maximum and one gap of each stretch of the curve.

    >>> downsample_points([(x, x % 7) for x in range(100)], max_points=6)
    [(0.0, 0.0), (6.0, 6.0), (55.0, 6.0), (56.0, 0.0)]
    """
    curve = _to_array(points)
    if len(curve) > max_points:
        indices, stretch = set[int](), ceil(len(curve) / (max_points // 3))
        for start in range(0, len(curve), stretch):
            values = curve[start : start + stretch, 1]
            is_finite = np.isfinite(values)
            if not is_finite.all():
                indices.add(start + int(is_finite.argmin()))
            if is_finite.any():
                indices.add(start + int(np.where(is_finite, values, inf).argmin()))
                indices.add(start + int(np.where(is_finite, values, -inf).argmax()))
        curve = curve[sorted(indices)]
    return [(x, y) for x, y in curve.tolist()]


def _to_array(points: Points, *, is_log: bool = False) -> Float64[np.ndarray, "points 2"]:
    """Return points as an array; with `is_log`, values that have no logarithm become NaN."""
    array = np.asarray(points, np.float64).reshape(-1, 2)
    if is_log:
        array = np.stack([array[:, 0], np.where(array[:, 1] > 0, array[:, 1], nan)], axis=1)
    return array


def format_tick(number: float) -> str:
    """Return the label of a tick: six significant digits at most, k for thousands and M for millions.

    >>> [format_tick(number) for number in (0.25, 1500, 20_000, 2_500_000, 0.00001)]
    ['0.25', '1500', '20k', '2.5M', '1e-5']
    """
    if abs(number) >= 1e4:
        return f"{number / 1e6:g}M" if abs(number) >= 1e6 else f"{number / 1e3:g}k"
    return f"{number:g}".replace("e-0", "e-")


def _chart_html(title: str, legend: Sequence[str], elements: Sequence[str], *, height: int) -> str:
    """Return a figure with a title, a legend above the drawing, and the drawing, 460 units wide."""
    return (
        f'<figure><h3>{escape(title)}</h3><p class="key">{" ".join(legend)}</p>'
        f'<svg viewBox="0 0 460 {height}" role="img" aria-label="{escape(title)}">{"".join(elements)}</svg></figure>'
    )


def _legend_entry(number: int, name: str, value_html: str = "") -> str:
    return f'<span class="s{number % len(SERIES_COLOURS)}"><i></i>{escape(name)}{value_html}</span>'


def _padded_range(low: float, high: float) -> tuple[float, float]:
    """Return the range widened at both ends, so that a single value has a range too."""
    if low == high == 0:
        return 0.0, 1.0  # such as an accuracy of 0 %, which has no values below
    padding = 0.04 * (high - low) or 0.5 * abs(low)
    return low - padding, high + padding


def _svg_paths(points: Points) -> str:
    """Return the path of a curve with breaks at gaps, and a dot for each point between two gaps."""
    runs = [list(run) for is_finite, run in groupby(points, key=lambda point: isfinite(point[1])) if is_finite]
    css_class = ' class="fine"' if len(points) > _FINE_FROM_POINTS else ""
    lines = "".join("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in run) for run in runs if len(run) > 1)
    dots = "".join(f"M{x:.1f} {y:.1f}h0" for run in runs for x, y in run if len(run) == 1)
    return f'<path{css_class} d="{lines}"/><path class="dot" d="{dots}"/>'
