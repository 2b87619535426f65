"""Tables, charts and CSV rows of robustness."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from math import nan

from c2fmae.core.csv_text import format_csv
from c2fmae.eval.metrics import find_metric
from c2fmae.eval.robustness.accuracy_metrics import SetPredictions, find_accuracy_line, is_corruption_grid
from c2fmae.eval.robustness.corruption_metrics import compute_cell_errors
from c2fmae.eval.robustness.effective_robustness import fit_accuracy_line, list_reference_accuracies
from c2fmae.eval.robustness.evaluation import SCORE_METRICS, RobustnessResult, format_set_name
from c2fmae.eval.robustness.scores import ALEXNET_ERRORS, TABLE_IV, CellKey
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
    """Return a table of the four sets of the paper and its Score, with the rows of the paper below."""
    rows: list[tuple[str | float | None, ...]] = []
    for result in results:
        metrics = [find_metric(result.metrics, key, **tags) for key, tags in (*SCORE_METRICS, ("robustness_score", {}))]
        rows.append((result.classifier.source, *(metric.value if metric else None for metric in metrics)))
    rows += [(f"{name}, {PAPER_NOTE}", *row) for name, row in TABLE_IV.items()]
    note = (
        "ImageNet-A and -R: top-1 among their own 200 classes. Sketch: top-1 among all 1,000. mCE: relative to "
        "AlexNet's errors, lower is better. Score: (A + R + Sketch + (100 - mCE)) / 4, if all four are available."
    )
    return Table(
        "Comparison with Table IV of the paper", ("", "IN-A", "IN-R", "IN-Sketch", "IN-C mCE", "Score"), rows, note
    )


def build_corruption_table(results: Sequence[RobustnessResult], set_index: int) -> Table:
    """Return a table of the error on each corruption of a set, averaged over the available severities."""
    shifted_set = results[0].set_predictions[set_index].shifted_set
    errors = [compute_cell_errors(result.set_predictions[set_index]) for result in results]
    names = dict.fromkeys(cell.corruption for cell in shifted_set.cells if cell.corruption)
    rows = [(name, *(_mean_percent(_select_errors(by_cell, name).values()) for by_cell in errors)) for name in names]
    columns = ("", *(result.classifier.source for result in results))
    return Table(f"{format_set_name(shifted_set)}: error by corruption, in percent", columns, rows)


def build_corruption_charts(results: Sequence[RobustnessResult], set_index: int) -> list[LineChart]:
    """Return a chart of the error by severity for each corruption; severity 0 is clean images of the same classes."""
    shifted_set = results[0].set_predictions[set_index].shifted_set
    charts = []
    for name in dict.fromkeys(cell.corruption for cell in shifted_set.cells if cell.corruption):
        series = {}
        for result in results:
            set_predictions = result.set_predictions[set_index]
            errors = _select_errors(compute_cell_errors(set_predictions), name)
            if set_predictions.clean is not None and set_predictions.clean.num_images:
                errors[0] = set_predictions.clean.error
            series[result.classifier.source] = [(float(x), 100 * errors.get(x, nan)) for x in sorted(errors)]
        charts.append(LineChart(name, series, x_label="severity", y_label="error, %", y_range=(0, 100)))
    return charts


def build_set_bar_chart(results: Sequence[RobustnessResult]) -> BarChart:
    """Return a bar chart of the accuracy on each set by its own protocol."""
    groups = [
        (
            format_set_name(set_predictions.shifted_set),
            [_compute_set_accuracy(result.set_predictions[set_index]) for result in results],
        )
        for set_index, set_predictions in enumerate(results[0].set_predictions)
    ]
    return BarChart("Accuracy by set, %", groups, [result.classifier.source for result in results])


def build_effective_robustness_charts(results: Sequence[RobustnessResult]) -> list[LineChart]:
    """Return a chart for each set with a line of reference models: the line, these models, and the results."""
    charts = []
    for set_index, set_predictions in enumerate(results[0].set_predictions):
        lines = [find_accuracy_line(result.set_predictions[set_index]) for result in results]
        points = {}
        for result, line in zip(results, lines, strict=True):
            tags = {"set": format_set_name(set_predictions.shifted_set)}
            clean = find_metric(result.metrics, "clean_top1", **tags)
            distance = find_metric(result.metrics, "effective_robustness", **tags)
            if line and clean and distance:
                points[result.classifier.source] = [(clean.value, line.predict(clean.value) + distance.value)]
        if points:
            charts.append(_build_line_chart(set_predictions.shifted_set.suite, points))
    return charts


def _build_line_chart(suite: str, points: Mapping[str, list[tuple[float, float]]]) -> LineChart:
    references, line = sorted(list_reference_accuracies(suite)), fit_accuracy_line(suite)
    assert line is not None
    lowest, *_, highest = sorted(
        x for x, _ in (*references, *(point for series in points.values() for point in series))
    )
    steps = [lowest + (highest - lowest) * step / 50 for step in range(51)]
    series = {
        "line": [(x, line.predict(x)) for x in steps],
        "models of timm": [point for x, y in references for point in ((x, y), (x, nan))],  # gaps make dots
        **points,
    }
    title = f"{suite}: accuracy against that on clean images, %"
    return LineChart(title, series, x_label="clean images, %", y_label=f"{suite}, %", names_last_values=False)


def results_to_csv(results: Sequence[RobustnessResult]) -> str:
    """Return CSV with a row of counts for each model, set and cell; all accuracies can be computed from these."""
    set_predictions = (predictions for result in results for predictions in result.set_predictions)
    return format_csv(_CSV_COLUMNS, (row for predictions in set_predictions for row in _cell_rows(predictions)))


def build_cell_records(set_predictions: SetPredictions) -> list[dict[str, object]]:
    """Return the counts of each cell, by the names of the CSV columns."""
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


def _compute_set_accuracy(set_predictions: SetPredictions) -> float | None:
    if not is_corruption_grid(set_predictions.shifted_set):
        return 100 - 100 * set_predictions.cells[0].error
    errors = compute_cell_errors(set_predictions)
    mean_error = _mean_percent([error for (name, _), error in errors.items() if name in ALEXNET_ERRORS])
    return None if mean_error is None else 100 - mean_error


def _select_errors(errors: Mapping[CellKey, float], corruption: str) -> dict[int, float]:
    """Return the error of each severity of a corruption."""
    return {severity: error for (name, severity), error in errors.items() if name == corruption}


def _mean_percent(errors: Collection[float]) -> float | None:
    return 100 * sum(errors) / len(errors) if errors else None
