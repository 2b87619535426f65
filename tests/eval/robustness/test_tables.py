from pathlib import Path

from c2fmae.core.distributed import World
from c2fmae.data.suites import Cell
from c2fmae.eval.robustness.config import RobustnessEvaluation
from c2fmae.eval.robustness.evaluation import evaluate_robustness
from c2fmae.eval.robustness.tables import build_corruption_charts
from tests.eval.robustness.colour_classifier import (
    IMAGENET_LABELS,
    make_class_image,
    make_colour_classifier,
    make_labelled_scenes,
    make_shifted_set,
)


def test_all_charts_of_corruptions_have_one_axis_of_errors_whatever_the_errors_are(tmp_path: Path) -> None:
    shown = {"fog": (0, 0), "snow": (0, 1)}  # none are wrong of fog, all are of the worst snow
    cells = [
        Cell(name, severity, make_labelled_scenes([(0, make_class_image(column))]), None)
        for name, columns in shown.items()
        for severity, column in zip((1, 5), columns, strict=True)
    ]
    of = make_shifted_set(cells, IMAGENET_LABELS, kind="imagenet-c", is_cut=True)
    config = RobustnessEvaluation(workers=0)
    found = evaluate_robustness(config, [make_colour_classifier()], [of], None, [tmp_path], World())
    charts = build_corruption_charts(found, 0)
    assert [(chart.title, *chart.series["planted"]) for chart in charts] == [
        ("fog", (1.0, 0.0), (5.0, 0.0)),
        ("snow", (1.0, 0.0), (5.0, 100.0)),
    ]
    assert [chart.y_range for chart in charts] == [(0, 100), (0, 100)]
