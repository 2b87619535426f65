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


def test_corruption_charts_have_the_same_axis_for_all_errors(tmp_path: Path) -> None:
    predicted = {"fog": (0, 0), "snow": (0, 1)}  # all correct for fog, all wrong for snow of severity 5
    cells = [
        Cell(name, severity, make_labelled_scenes([(0, make_class_image(column))]), None)
        for name, columns in predicted.items()
        for severity, column in zip((1, 5), columns, strict=True)
    ]
    shifted_set = make_shifted_set(cells, IMAGENET_LABELS, suite="imagenet-c", is_cropped=True)
    config = RobustnessEvaluation(workers=0)
    results = evaluate_robustness(config, [make_colour_classifier()], [shifted_set], None, [tmp_path], World())
    charts = build_corruption_charts(results, 0)
    assert [(chart.title, *chart.series["planted"]) for chart in charts] == [
        ("fog", (1.0, 0.0), (5.0, 0.0)),
        ("snow", (1.0, 0.0), (5.0, 100.0)),
    ]
    assert [chart.y_range for chart in charts] == [(0, 100), (0, 100)]
