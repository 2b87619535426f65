"""What robustness found, as tables, charts and rows of a file."""

import csv
from collections.abc import Iterator, Sequence
from io import StringIO
from math import nan

from c2fmae.eval.metrics import find_metric
from c2fmae.eval.robustness.accuracy_metrics import SetPredictions, is_corruption_grid
from c2fmae.eval.robustness.corruption_metrics import compute_cell_errors
from c2fmae.eval.robustness.evaluation import SCORE_METRICS, RobustnessResult, format_set_name
from c2fmae.eval.robustness.scores import ALEXNET_ERRORS, TABLE_IV
from c2fmae.report import BarChart, LineChart, Table

_CSV_COLUMNS = (
    "model",
    "set",
    "kind",
    "self_made",
    "corruption",
    "severity",
    "photos",
    "expected",
    "left_out",
    "resized",
    "errors",
    "errors_among_all_classes",
)
PAPER_NOTE = "reported by the paper, ViT-B fine-tuned on ImageNet"


def build_paper_table(results: Sequence[RobustnessResult]) -> Table:
    """Return the four sets and the Score, and the paper's rows below."""
    rows: list[tuple[str | float | None, ...]] = []
    for each in results:
        metrics = [find_metric(each.metrics, key, **tags) for key, tags in (*SCORE_METRICS, ("robustness_score", {}))]
        rows.append((each.classifier.source, *(metric.value if metric else None for metric in metrics)))
    rows += [(f"{name}, {PAPER_NOTE}", *row) for name, row in TABLE_IV.items()]
    note = (
        "ImageNet-A and -R among their own 200 classes, Sketch among all 1000, mCE by AlexNet's errors (lower is "
        "better). Score = (A + R + Sketch + (100 - mCE)) / 4, where all four are there."
    )
    return Table("Beside Table IV", ("", "IN-A", "IN-R", "IN-Sketch", "IN-C mCE", "Score"), rows, note)


def build_corruption_table(results: Sequence[RobustnessResult], set_index: int) -> Table:
    """Return the error on each corruption of a set, its mean over the severities that are there."""
    shifted_set = results[0].set_predictions[set_index].shifted_set
    errors = [compute_cell_errors(each.set_predictions[set_index]) for each in results]
    names = dict.fromkeys(cell.corruption for cell in shifted_set.cells if cell.corruption)
    rows = [
        (name, *(_mean_percent([e for (c, _), e in some.items() if c == name]) for some in errors)) for name in names
    ]
    columns = ("", *(each.classifier.source for each in results))
    return Table(f"{format_set_name(shifted_set)}: error by corruption, in percent", columns, rows)


def build_corruption_charts(results: Sequence[RobustnessResult], set_index: int) -> list[LineChart]:
    """Return the error by severity, a chart for each corruption; at 0 that on clean photos of the same classes."""
    shifted_set = results[0].set_predictions[set_index].shifted_set
    charts = []
    for name in dict.fromkeys(cell.corruption for cell in shifted_set.cells if cell.corruption):
        series = {}
        for each in results:
            set_predictions = each.set_predictions[set_index]
            errors = {
                severity: error for (c, severity), error in compute_cell_errors(set_predictions).items() if c == name
            }
            if set_predictions.clean is not None and set_predictions.clean.num_images:
                errors[0] = set_predictions.clean.error
            series[each.classifier.source] = [(float(x), 100 * errors.get(x, nan)) for x in sorted(errors)]
        charts.append(LineChart(name, series, x_label="severity", y_label="error, %", y_range=(0, 100)))
    return charts


def build_set_bar_chart(results: Sequence[RobustnessResult]) -> BarChart:
    """Return the accuracy on each set, by its own protocol."""
    groups = []
    for set_index, set_predictions in enumerate(results[0].set_predictions):
        groups.append(
            (
                format_set_name(set_predictions.shifted_set),
                [_set_accuracy(each.set_predictions[set_index]) for each in results],
            )
        )
    return BarChart("Accuracy by set, %", groups, [each.classifier.source for each in results])


def results_to_csv(results: Sequence[RobustnessResult]) -> str:
    """Return a row for each model, set and cell: counts, of which every number can be made again."""
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_CSV_COLUMNS)
    for each in results:
        for set_predictions in each.set_predictions:
            writer.writerows(_cell_rows(set_predictions))
    return text.getvalue()


def build_cell_records(set_predictions: SetPredictions) -> list[dict[str, object]]:
    """Return the counts of each cell by name."""
    return [dict(zip(_CSV_COLUMNS[4:], row[4:], strict=True)) for row in _cell_rows(set_predictions)]


def _cell_rows(set_predictions: SetPredictions) -> Iterator[tuple[object, ...]]:
    shifted_set = set_predictions.shifted_set
    for cell in set_predictions.cells:
        yield (
            set_predictions.classifier.source,
            shifted_set.name,
            shifted_set.suite,
            shifted_set.creation_sentence is not None,
            cell.cell.corruption,
            cell.cell.severity,
            cell.num_images,
            cell.cell.expected_images,
            cell.num_excluded,
            cell.stored.num_resized,
            int((~cell.is_correct).sum()),
            int((~cell.is_correct_among_all).sum()),
        )


def _set_accuracy(set_predictions: SetPredictions) -> float | None:
    if is_corruption_grid(set_predictions.shifted_set):
        mean = _mean_percent(
            [
                error
                for (corruption, _), error in compute_cell_errors(set_predictions).items()
                if corruption in ALEXNET_ERRORS
            ]
        )
    else:
        mean = 100 * set_predictions.cells[0].error
    return None if mean is None else 100 - mean


def _mean_percent(errors: Sequence[float]) -> float | None:
    return 100 * sum(errors) / len(errors) if errors else None
