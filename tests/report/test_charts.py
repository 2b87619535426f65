import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from c2fmae.core.metric_columns import MetricColumns
from c2fmae.report import BarChart, HeatMap, LineChart, Page, render_page
from c2fmae.report.charts import chart_metrics, downsample_points
from tests.report.parsed_page import ParsedPage


def parse_chart(chart: LineChart | BarChart | HeatMap) -> ParsedPage:
    return ParsedPage(render_page(Page("A page", "A summary.", [chart])))


def lines(*points: tuple[float, float], **settings: Any) -> list[str]:
    """Return the paths of the only curve: its line and its dots."""
    page = parse_chart(LineChart("A curve", {"a": points}, **settings))
    return [str(path["d"]) for path in page.all("path") if path.get("class") != "rule"]


def test_a_curve_follows_its_values() -> None:
    line, dots = lines((0, 0), (1, 2), (2, 1))
    (x0, y0), (x1, y1), (x2, y2) = (tuple(map(float, point.split())) for point in line[1:].split("L"))
    assert x1 - x0 == x2 - x1 > 0
    assert y0 > y2 > y1
    assert dots == ""


@pytest.mark.parametrize("gap", [math.nan, math.inf, -math.inf])
def test_a_non_finite_value_is_a_gap(gap: float) -> None:
    line, dots = lines((0, 1), (1, 2), (2, gap), (3, 1), (4, gap), (5, 1), (6, 2))
    assert line.count("M") == 2
    assert line.count("L") == 2
    assert dots.count("M") == 1
    assert "nan" not in line + dots
    assert "inf" not in line + dots


def test_a_log_scale_shows_equal_ratios_at_equal_distances_and_zero_as_a_gap() -> None:
    line, _ = lines((0, 1), (1, 10), (2, 100), (3, 0), is_log=True)
    first, second, third = (float(point.split()[1]) for point in line[1:].split("L"))
    assert first - second == pytest.approx(second - third, abs=0.11)
    assert first > second


@pytest.mark.parametrize("y", [0.0, 5.0, -5.0, 1e-12, 1e12])
@pytest.mark.parametrize("log", [False, True])
def test_a_single_point_and_a_constant_curve_are_drawn(y: float, log: bool) -> None:
    is_drawn = y > 0 or not log
    assert [len(text) > 0 for text in lines((3, y), is_log=log)] == ([False, True] if is_drawn else [])
    assert [len(text) > 0 for text in lines((3, y), (4, y), is_log=log)] == ([True, False] if is_drawn else [])


def test_a_curve_of_zeros_has_no_axis_below_zero() -> None:
    texts = parse_chart(LineChart("AP, %", {"test": [(1, 0.0), (2, 0.0)]})).text.split()
    assert "0" in texts
    assert not [text for text in texts if text.startswith(("-", "−"))]


@pytest.mark.parametrize("points", [[], [(0, math.nan)]])
def test_a_chart_without_values_is_a_note(points: list[tuple[float, float]]) -> None:
    assert "Loss No values yet." in parse_chart(LineChart("Loss", {"training": points})).text


def test_downsampling_preserves_extremes_and_gaps() -> None:
    points = [(step, math.sin(step / 900)) for step in range(100_000)]
    points[4321], points[5555] = (4321, 7.0), (5555, -7.0)
    points[4322], points[5556] = (4322, math.nan), (5556, math.nan)
    points[30_000:31_000] = [(step, math.nan) for step in range(30_000, 31_000)]
    shown = downsample_points(points)
    assert len(shown) <= 500
    assert shown == sorted(shown)
    assert {(4321, 7.0), (5555, -7.0)} <= set(shown)
    assert any(30_000 <= x < 31_000 and math.isnan(y) for x, y in shown)
    assert not any(30_000 <= x < 31_000 and math.isfinite(y) for x, y in shown)
    assert max(b[0] - a[0] for a, b in pairwise(shown)) < 1300


@pytest.mark.parametrize("is_log", [False, True])
def test_a_chart_of_an_array_equals_that_of_its_points(is_log: bool) -> None:
    values = np.random.default_rng(0).normal(1, 1, 2000)
    values[[3, 700, 701, 1999]] = math.nan
    points = np.stack([np.arange(2000), values], axis=1)
    charts = [
        LineChart("Loss", {"a": curve}, is_log=is_log).to_html()
        for curve in (points, [(x, y) for x, y in points.tolist()])
    ]
    assert charts[0] == charts[1]


def test_a_short_curve_is_not_downsampled() -> None:
    points = [(step, float(step % 3)) for step in range(500)]
    assert downsample_points(points) == points


def test_metrics_become_curves_with_gaps_where_they_are_null() -> None:
    rows: list[dict[str, Any]] = [
        {"step": 1, "loss": 2.0},
        {"step": 2, "loss": None, "rate": 0.1},
        {"step": 3, "loss": 1.0},
    ]
    chart = chart_metrics(MetricColumns(rows), "Both", {"training": "loss", "rate": "rate", "absent": "nothing"})
    assert list(chart.series) == ["training", "rate"]
    assert [x for x, _ in chart.series["training"]] == [1, 2, 3]
    assert math.isnan(chart.series["training"][1][1])
    assert [*map(tuple, chart.series["rate"])] == [(2, 0.1)]


def test_bars_are_proportional_to_their_values_and_none_is_left_out() -> None:
    page = parse_chart(BarChart("Accuracy", [("first", [100.0, 25.0]), ("second", [None, 0.0])], ["a", "b"]))
    assert [(bar["class"], float(bar["width"] or 0)) for bar in page.all("rect")] == [
        ("s0", 260.0),
        ("s1", 65.0),
        ("s1", 0.0),
    ]
    assert "Accuracy a b first 100.0 25.0 second 0.0" in page.text


def test_cells_of_a_heat_map_are_darker_for_higher_values() -> None:
    heat_map = HeatMap("Confusions", ["sky", "<sea>"], ["sky", "wall, brick wall, garden wall"], [[80, 20], [None, 40]])
    page = parse_chart(heat_map)
    assert [cell["fill-opacity"] for cell in page.all("rect")] == ["0.75", "0.19", "0.38"]
    assert "sky <sea> sky wall, brick wall, gar… 80.0 20.0 40.0" in page.text
    assert parse_chart(HeatMap("Nothing", ["a"], ["b"], [[0.0]])).all("rect")[0]["fill-opacity"] == "0.00"
