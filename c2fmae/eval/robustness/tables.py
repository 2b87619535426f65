"""What robustness found, as tables, charts and rows of a file."""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from io import StringIO
from math import nan

from c2fmae.eval.evaluation import Metric
from c2fmae.eval.robustness.accuracy_metrics import Answers, is_grid
from c2fmae.eval.robustness.corruption_metrics import errors_of
from c2fmae.eval.robustness.evaluation import OF_SCORE, Found, shown_name
from c2fmae.eval.robustness.scores import ALEXNET, TABLE_IV
from c2fmae.report import Curves, Table
from c2fmae.report.drawing import SERIES

_COLUMNS = (
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
PAPER = "reported by the paper, ViT-B fine-tuned on ImageNet"


def numbers_table(found: Sequence[Found]) -> Table:
    """Return all numbers, models side by side; what has to be known of one is below, or in its row where all share it.

    The second column says over how many photos they are, where that is the same for all.
    """
    names = dict.fromkeys(metric.name for each in found for metric in each.metrics)
    by_name = [{metric.name: metric for metric in each.metrics} for each in found]
    rows = []
    for name in names:
        metrics = [each.get(name) for each in by_name]
        counts = {metric.count for metric in metrics if metric}
        photos = f"{counts.pop():,}" if len(counts) == 1 and name != "Score" else ""
        rows.append((name, photos, *map(_said, metrics)))
    return Table("Robustness, in percent", ("", "photos", *(each.entrant.source for each in found)), rows)


def notes(found: Sequence[Found]) -> list[str]:
    """Return what has to be known beside the numbers, a line each: once where it holds of all models."""
    lines: dict[tuple[str, str], list[str]] = {}
    for each in found:
        for metric in each.metrics:
            for note in filter(None, metric.note.split("; ")):
                lines.setdefault((metric.name, note), []).append(each.entrant.source)
    every = len(found)
    return [
        f"{name}: {note}" if len(who) == every else f"{name}, {', '.join(who)}: {note}"
        for (name, note), who in lines.items()
    ]


def four_table(found: Sequence[Found]) -> Table:
    """Return the four sets and the Score, and the paper's rows below."""
    rows: list[tuple[str | float | None, ...]] = []
    for each in found:
        value = {metric.name: metric.value for metric in each.metrics}
        four = (value.get(f"{name}, {number}") for name, number in OF_SCORE)
        rows.append((each.entrant.source, *four, value.get("Score")))
    rows += [(f"{name}, {PAPER}", *row) for name, row in TABLE_IV.items()]
    note = (
        "ImageNet-A and -R among their own 200 classes, Sketch among all 1000, mCE by AlexNet's errors (lower is "
        "better). Score = (A + R + Sketch + (100 - mCE)) / 4, where all four are there."
    )
    return Table("Beside Table IV", ("", "IN-A", "IN-R", "IN-Sketch", "IN-C mCE", "Score"), rows, note)


def corruption_table(found: Sequence[Found], place: int) -> Table:
    """Return the error on each corruption of a set, its mean over the severities that are there."""
    of = found[0].answers[place].of
    errors = [errors_of(each.answers[place]) for each in found]
    names = dict.fromkeys(cell.corruption for cell in of.cells if cell.corruption)
    rows = [(name, *(_mean([e for (c, _), e in some.items() if c == name]) for some in errors)) for name in names]
    columns = ("", *(each.entrant.source for each in found))
    return Table(f"{shown_name(of)}: error by corruption, in percent", columns, rows)


def corruption_charts(found: Sequence[Found], place: int) -> list[Curves]:
    """Return the error by severity, a chart for each corruption; at 0 that on clean photos of the same classes."""
    of = found[0].answers[place].of
    charts = []
    for name in dict.fromkeys(cell.corruption for cell in of.cells if cell.corruption):
        series = {}
        for each in found:
            answers = each.answers[place]
            errors = {severity: error for (c, severity), error in errors_of(answers).items() if c == name}
            if answers.clean is not None and answers.clean.num_photos:
                errors[0] = answers.clean.error
            series[each.entrant.source] = [(float(x), 100 * errors.get(x, nan)) for x in sorted(errors)]
        charts.append(Curves(name, series, x_label="severity", y_label="error, %", within=(0, 100)))
    return charts


@dataclass(frozen=True)
class Bars:
    """The first number of each set for each model, as bars from 0 to 100."""

    title: str
    groups: Sequence[tuple[str, Sequence[float | None]]]
    """By set the models' numbers."""
    names: Sequence[str]

    def html(self) -> str:
        """Return a figure."""
        row, gap, left, right = 14, 12, 150, 410
        drawn, y = [], 0
        for title, values in self.groups:
            middle = y + row * len(values) / 2 + 4
            drawn.append(f'<text x="{left - 10}" y="{middle:.0f}" text-anchor="end">{escape(title)}</text>')
            for number, value in enumerate(values):
                if value is not None:
                    end = left + (right - left) * min(max(value, 0), 100) / 100
                    fill = f"fill: var(--s{number % len(SERIES)})"
                    drawn.append(
                        f'<rect style="{fill}" x="{left}" y="{y + 1}" width="{end - left:.1f}" height="{row - 3}"/>'
                    )
                    drawn.append(f'<text x="{end + 6:.1f}" y="{y + 11}">{value:.1f}</text>')
                y += row
            y += gap
        key = " ".join(
            f'<span class="s{number % len(SERIES)}"><i></i>{escape(name)}</span>'
            for number, name in enumerate(self.names)
        )
        return (
            f'<figure style="max-width: 34rem"><h3>{escape(self.title)}</h3><p class="key">{key}</p>'
            f'<svg viewBox="0 0 460 {y}" role="img" aria-label="{escape(self.title)}">{"".join(drawn)}</svg></figure>'
        )


def set_bars(found: Sequence[Found]) -> Bars:
    """Return the accuracy on each set, by its own protocol."""
    groups = []
    for place, answers in enumerate(found[0].answers):
        groups.append((shown_name(answers.of), [_accuracy(each.answers[place]) for each in found]))
    return Bars("Accuracy by set, %", groups, [each.entrant.source for each in found])


def as_csv(found: Sequence[Found]) -> str:
    """Return a row for each model, set and cell: counts, of which every number can be made again."""
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for each in found:
        for answers in each.answers:
            writer.writerows(_rows(answers))
    return text.getvalue()


def cell_facts(answers: Answers) -> list[dict[str, object]]:
    """Return the counts of each cell by name."""
    return [dict(zip(_COLUMNS[4:], row[4:], strict=True)) for row in _rows(answers)]


def _rows(answers: Answers) -> Iterator[tuple[object, ...]]:
    of = answers.of
    for cell in answers.cells:
        yield (
            answers.entrant.source,
            of.name,
            of.kind,
            of.self_made is not None,
            cell.cell.corruption,
            cell.cell.severity,
            cell.num_photos,
            cell.cell.expected,
            cell.num_left_out,
            cell.predictions.num_resized,
            int((~cell.is_right).sum()),
            int((~cell.is_right_of_all).sum()),
        )


def _accuracy(answers: Answers) -> float | None:
    if is_grid(answers.of):
        mean = _mean([error for (corruption, _), error in errors_of(answers).items() if corruption in ALEXNET])
    else:
        mean = 100 * answers.cells[0].error
    return None if mean is None else 100 - mean


def _mean(errors: Sequence[float]) -> float | None:
    return 100 * sum(errors) / len(errors) if errors else None


def _said(metric: Metric | None) -> str:
    if metric is None:
        return "–"
    span = f" ({metric.interval[0]:.2f}-{metric.interval[1]:.2f})" if metric.interval else ""
    return f"{metric.value:.2f}{span}"
