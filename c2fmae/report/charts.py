"""Curves as SVG that takes its colours from the page, so that it is right in light and in dark."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from math import ceil, floor, isfinite, log10, nan

from c2fmae.report.drawing import SERIES, ticks

Points = Sequence[tuple[float, float]]

_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 450, 20, 200  # of the part of a drawing in which the curves are
_DENSE = 200  # points from which on a line is drawn finely


@dataclass(frozen=True)
class Curves:
    """Curves by name, as points (x, y), x rising; where y is NaN there is a gap."""

    title: str
    series: Mapping[str, Points]
    x_label: str = "step"
    y_label: str = ""
    log: bool = False
    """Whether equal ratios are equally high; what is not above 0 is a gap too."""
    within: tuple[float, float] | None = None
    """The lowest and highest y that is shown, where it is to be the same in several charts."""

    def html(self) -> str:
        """Return a figure; without a single number it says so."""
        curves = [[(x, self._height(y)) for x, y in points] for points in self.series.values()]
        known = [(x, y) for points in curves for x, y in points if isfinite(y)]
        if not known:
            return f'<figure><h3>{escape(self.title)}</h3><p class="note">No numbers yet.</p></figure>'
        (x0, x1), (y0, y1) = (_apart(min(values), max(values)) for values in zip(*known, strict=True))
        y0, y1 = self.within or (y0, y1)
        per_x, per_y = (_RIGHT - _LEFT) / (x1 - x0), (_BOTTOM - _TOP) / (y1 - y0)
        drawn = [f'<text y="10">{escape(self.y_label)}</text>']
        for tick in self._ticks(y0, y1):
            y = _BOTTOM - (self._height(tick) - y0) * per_y
            drawn.append(f'<path class="rule" d="M{_LEFT} {y:.1f}H{_RIGHT}"/>')
            drawn.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{short(tick)}</text>')
        for tick in ticks(x0, x1):
            x = _LEFT + (tick - x0) * per_x
            drawn.append(f'<text x="{x:.1f}" y="{_BOTTOM + 18}" text-anchor="middle">{short(tick)}</text>')
        drawn.append(f'<text x="{_RIGHT}" y="{_BOTTOM + 36}" text-anchor="end">{escape(self.x_label)}</text>')
        for number, points in enumerate(curves):
            places = [(_LEFT + (x - x0) * per_x, _BOTTOM - (y - y0) * per_y) for x, y in thin(points)]
            drawn.append(f'<g class="s{number % len(SERIES)}">{_strokes(places)}</g>')
        return (
            f'<figure><h3>{escape(self.title)}</h3><p class="key">{" ".join(self._key())}</p>'
            f'<svg viewBox="0 0 460 242" role="img" aria-label="{escape(self.title)}">{"".join(drawn)}</svg></figure>'
        )

    def _height(self, y: float) -> float:
        return y if not self.log else log10(y) if y > 0 else nan

    def _ticks(self, low: float, high: float) -> list[float]:
        if not self.log:
            return ticks(low, high)
        powers = [10.0**power for power in range(floor(low), ceil(high) + 1)]
        for few in ((1,), (1, 2, 5)):
            marks = [m * power for power in powers for m in few if low <= log10(m * power) <= high]
            if len(marks) > 2:
                return marks
        return ticks(10**low, 10**high)

    def _key(self) -> list[str]:
        """Return the names of the curves, each with the last number of its own."""
        last = [next((y for _, y in reversed(points) if isfinite(y)), nan) for points in self.series.values()]
        return [
            f'<span class="s{number % len(SERIES)}"><i></i>{escape(name)} <b>{value:.4g}</b></span>'
            for number, (name, value) in enumerate(zip(self.series, last, strict=True))
        ]


def thin(points: Points, most: int = 500) -> list[tuple[float, float]]:
    """Return at most so many points: of each stretch the lowest and the highest, and a gap if it has one.

    >>> thin([(x, x % 7) for x in range(100)], most=6)
    [(0, 0), (6, 6), (55, 6), (56, 0)]
    """
    if len(points) <= most:
        return list(points)
    kept, stretch = set[int](), ceil(len(points) / (most // 3))
    for start in range(0, len(points), stretch):
        places = range(start, min(start + stretch, len(points)))
        known = [place for place in places if isfinite(points[place][1])]
        kept.update([place for place in places if not isfinite(points[place][1])][:1])
        kept.update(pick(known, key=lambda place: points[place][1]) for pick in (min, max) if known)
    return [points[place] for place in sorted(kept)]


def short(number: float) -> str:
    """Write a number as an axis does.

    >>> [short(number) for number in (0.25, 1500, 20_000, 2_500_000, 0.00001)]
    ['0.25', '1500', '20k', '2.5M', '1e-5']
    """
    if abs(number) >= 1e4:
        return f"{number / 1e6:g}M" if abs(number) >= 1e6 else f"{number / 1e3:g}k"
    return f"{number:g}".replace("e-0", "e-")


def _apart(low: float, high: float) -> tuple[float, float]:
    """Return a range with air at both ends, also about a single number."""
    air = 0.04 * (high - low) or 0.5 * abs(low) or 1.0
    return low - air, high + air


def _strokes(places: Points) -> str:
    """Return a line that is broken at gaps; a point that is alone between two is a dot."""
    runs = [list(run) for is_known, run in groupby(places, key=lambda place: isfinite(place[1])) if is_known]
    fine = ' class="fine"' if len(places) > _DENSE else ""
    lines = "".join("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in run) for run in runs if len(run) > 1)
    dots = "".join(f"M{x:.1f} {y:.1f}h0" for run in runs for x, y in run if len(run) == 1)
    return f'<path{fine} d="{lines}"/><path class="dot" d="{dots}"/>'
