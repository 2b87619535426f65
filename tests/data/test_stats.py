from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from c2fmae.core.labels import ClassInfo, LabelInfo
from c2fmae.data import stats
from c2fmae.data.check import AREA_FRACTION_EDGES, CheckReport
from c2fmae.data.info import DatasetInfo
from c2fmae.data.stats import describe_stats, draw_stats
from c2fmae.report.drawing import draw_bar_chart

pytestmark = pytest.mark.numeric

NO_CLASSES = np.zeros(256, np.int64)


def report(**changes: Any) -> CheckReport:
    pixels, images = NO_CLASSES.copy(), NO_CLASSES.copy()
    pixels[[0, 1, 255]], images[[0, 1, 255]] = (60, 30, 10), (4, 2, 1)
    full_report = CheckReport(
        info=DatasetInfo(
            classes=tuple(ClassInfo(name=name) for name in ("sky", "cat", "dog")), labels=(LabelInfo(name="in"), None)
        ),
        problems=(),
        valid_keys=("a", "b", "c", "d"),
        num_scenes=4,
        class_pixels=pixels,
        class_images=images,
        object_counts={0: 1, 2: 2, 60: 1},
        object_area_counts=np.array([1, 2, 3, 4, 5, 6, 43]),
        label_counts={0: 3, 1: 1},
        image_size_counts={(30, 20): 3, (500, 400): 1},
    )
    return replace(full_report, **changes)


@pytest.fixture
def charts(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, float]]:
    """Record the bars of each chart by title."""
    drawn = dict[str, dict[str, float]]()

    def record(bars: dict[str, float], *, title: str, **options: Any) -> Any:
        drawn[title] = bars
        return draw_bar_chart(bars, title=title, **options)

    monkeypatch.setattr("c2fmae.data.stats.draw_bar_chart", record)
    return drawn


def test_every_count_is_drawn(charts: dict[str, dict[str, float]]) -> None:
    draw_stats(report())
    sizes = ["0 % to 0.1 %", "0.1 % to 0.3 %", "0.3 % to 1 %", "1 % to 3 %", "3 % to 10 %", "10 % to 30 %"]
    assert charts == {
        "Fraction of pixels with a class": {"sky": 0.6, "cat": 0.3, "(not labelled)": 0.1},
        "Fraction of images with a class": {"sky": 1.0, "cat": 0.5, "(not labelled)": 0.25},
        "Images by number of objects": {
            **{"0": 1, "1": 0, "2": 2, "3": 0, "4": 0, "5–6": 0, "7–9": 0, "10–14": 0, "15–19": 0, "20–29": 0},
            **{"30–49": 0, "50 or more": 1},
        },
        "Objects by fraction of the image": dict(zip([*sizes, "30 % to 100 %"], [1, 2, 3, 4, 5, 6, 43], strict=True)),
        "Images by label": {"in": 3, "label 1": 1},
        "Images by shorter side, in pixels": {
            **{"0–31": 3, "32–63": 0, "64–95": 0, "96–127": 0, "128–191": 0, "192–255": 0, "256–319": 0},
            **{"320–383": 0, "384–447": 1},
        },
    }
    assert len(sizes) + 2 == len(AREA_FRACTION_EDGES)


def test_absent_statistics_are_not_drawn(charts: dict[str, dict[str, float]]) -> None:
    draw_stats(report(class_pixels=NO_CLASSES, class_images=NO_CLASSES, object_counts={}, label_counts={}))
    assert list(charts) == ["Images by shorter side, in pixels"]


def test_a_report_without_readable_scenes_can_be_drawn() -> None:
    empty = report(num_scenes=0, class_pixels=NO_CLASSES, object_counts={}, label_counts={}, image_size_counts={})
    assert draw_stats(empty).width > 100
    assert describe_stats(empty) == "scenes   0"


def test_the_longest_bars_are_shown_and_the_others_counted() -> None:
    many = {str(i): float(i) for i in range(1000)}
    bars = stats._largest_bars(many)
    assert len(bars) == 40
    assert list(bars)[:2] == ["999", "998"]
    assert list(bars.items())[-1] == ("961 others, each at most", 960.0)
    assert len(stats._largest_bars(dict(list(many.items())[:40]))) == 40


def test_statistics_are_described_as_text() -> None:
    assert describe_stats(report()).splitlines() == [
        "scenes   4",
        "images   2 sizes, most often 30×20 (3), shorter side 20 to 400 pixels",
        "objects  64; per image 16.0 on average, median 2, maximum 60",
        "labels   2 of 2, with 1 to 3 images each",
    ]
