from pathlib import Path

from c2fmae.core.distributed import World
from c2fmae.data.suites.cells import Cell
from c2fmae.eval.robustness.evaluation import RobustnessConfig, evaluate_robustness
from c2fmae.eval.robustness.tables import corruption_charts
from tests.eval.robustness.colour_classifier import THOUSAND, FolderOf, entrant, photo, scenes, shifted


def test_all_charts_of_corruptions_have_one_axis_of_errors_whatever_the_errors_are(tmp_path: Path) -> None:
    shown = {"fog": (0, 0), "snow": (0, 1)}  # none are wrong of fog, all are of the worst snow
    cells = [
        Cell(name, severity, scenes([(0, photo(column))]), None)
        for name, columns in shown.items()
        for severity, column in zip((1, 5), columns, strict=True)
    ]
    of = shifted(cells, THOUSAND, kind="imagenet-c", is_cut=True)
    config = RobustnessConfig(workers=0)
    found = evaluate_robustness([entrant()], [of], None, config, FolderOf(tmp_path), World())
    charts = corruption_charts(found, 0)
    assert [(chart.title, *chart.series["planted"]) for chart in charts] == [
        ("fog", (1.0, 0.0), (5.0, 0.0)),
        ("snow", (1.0, 0.0), (5.0, 100.0)),
    ]
    assert [chart.within for chart in charts] == [(0, 100), (0, 100)]
