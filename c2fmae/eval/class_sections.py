"""Sections of pages on the classes of a test: a score of each, and the pairs that are confused."""

from collections.abc import Sequence

from c2fmae.report import BarChart, HeatMap, Section, Table, Text

_NUM_PAIRS = 12  # in the heat map
_NUM_BARS = 20  # of the best classes, and of the worst

ClassScores = tuple[str, Sequence[float | None]]
"""A class and its scores in percent, one for each series; None for one without a score."""


def list_absent_classes(names: Sequence[str]) -> str:
    """Return a sentence that names the classes without a sample in the test; nothing if there is none."""
    if not names:
        return ""
    more = f" and {len(names) - _NUM_PAIRS} more" if len(names) > _NUM_PAIRS else ""
    return f" Classes that do not occur in the test images: {', '.join(names[:_NUM_PAIRS])}{more}."


def make_class_charts(score: str, classes: Sequence[ClassScores], series_names: Sequence[str]) -> list[Section]:
    """Return charts of all classes with a first score, or of the best and of the worst, highest first."""
    bars = sorted((entry for entry in classes if entry[1][0] is not None), key=lambda entry: -(entry[1][0] or 0))
    charts = {f"{score} of classes, %": bars}
    if len(bars) > 2 * _NUM_BARS:
        charts = {f"Highest {score}, %": bars[:_NUM_BARS], f"Lowest {score}, %": bars[-_NUM_BARS:]}
    elif len(bars) > _NUM_BARS:  # in two columns
        middle = (len(bars) + 1) // 2
        charts = {f"{score} of classes, %": bars[:middle], f"{score} of classes, % (continued)": bars[middle:]}
    return [BarChart(title, groups, series_names) for title, groups in charts.items()]


def make_confusion_sections(
    counts: Sequence[Sequence[int]], totals: Sequence[int], names: Sequence[str], unit: str
) -> list[Section]:
    """Return a heat map of the classes in the most confused pairs, and a table of the pairs.

    `counts` are the pairs of each true class (row) and predicted class, `totals` those of each true class in all, and
    `unit` is what is counted, in the plural.
    """
    pairs = list_confused_pairs(counts)[:_NUM_PAIRS]
    if not pairs:
        return [Text(f"No {unit} are predicted as another class.")]
    true, predicted = (list(dict.fromkeys(pair[side] for pair in pairs)) for side in (0, 1))
    columns = [*true, *(class_id for class_id in predicted if class_id not in true)]
    values = [[100 * counts[i][j] / totals[i] if counts[i][j] else None for j in columns] for i in true]
    rows = [(names[i], names[j], f"{counts[i][j]:,}", f"{100 * counts[i][j] / totals[i]:.1f}") for i, j in pairs]
    return [
        HeatMap(
            "Predictions of the classes that are confused most",
            [names[class_id] for class_id in true],
            [names[class_id] for class_id in columns],
            values,
            f"Each row is a true class: the percentages of its {unit} by predicted class. Other predictions are left "
            "out.",
        ),
        Table("Most confused pairs", ("truth", "predicted as", unit, "% of the true class"), rows),
    ]


def list_confused_pairs(counts: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """Return all pairs of a true and another predicted class that occur, most frequent first, then by class.

    >>> list_confused_pairs([[9, 1, 4], [0, 9, 0], [4, 6, 9]])
    [(2, 1), (0, 2), (2, 0), (0, 1)]
    """
    pairs = [(i, j) for i, row in enumerate(counts) for j, count in enumerate(row) if i != j and count]
    return sorted(pairs, key=lambda pair: -counts[pair[0]][pair[1]])
