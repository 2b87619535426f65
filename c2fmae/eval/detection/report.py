"""The page of a detection run, and the sections on its sizes, curves, classes, errors and examples."""

from collections.abc import Mapping, Sequence
from math import nan
from pathlib import Path

from c2fmae.core.csv_text import parse_csv
from c2fmae.core.errors import UserError
from c2fmae.core.files import read_text
from c2fmae.core.metric_columns import MetricColumns
from c2fmae.core.metric_rows import read_rows
from c2fmae.core.run_dir import RunDir
from c2fmae.eval.class_sections import list_absent_classes, make_class_charts, make_confusion_sections
from c2fmae.eval.training_report import write_training_page
from c2fmae.report import BarChart, Figure, LineChart, Section, Table, Text
from c2fmae.report.charts import chart_metrics

CLASSES_FILE, CONFUSION_FILE, CURVES_FILE = "classes.csv", "confusion.csv", "curves.csv"
SIZES_FILE, ERRORS_FILE, EXAMPLES_FILE = "sizes.csv", "errors.csv", "pictures/examples.png"

MEAN_CURVE = "(mean of classes)"
"""The name of the mean over classes in the table of curves."""

_KINDS = {"box": "boxes", "mask": "masks"}
_LOSSES = ("objectness", "rpn_box", "class", "box", "mask")
_Row = Mapping[str, str]


def make_detection_sections(result_dir: Path) -> list[Section]:
    """Return the sections on a result, from the files in its directory; none for files that are missing."""
    try:
        classes, curves, sizes, confusion, errors = (
            parse_csv(read_text(result_dir / name))
            for name in (CLASSES_FILE, CURVES_FILE, SIZES_FILE, CONFUSION_FILE, ERRORS_FILE)
        )
    except UserError:
        return []
    kinds = [kind for kind in _KINDS if f"{kind} AP" in sizes[0]]
    folder = f"{result_dir.parent.name}/{result_dir.name}"  # from the page of the run
    location = f"All classes are in {folder}/{CLASSES_FILE}, all pairs in {folder}/{CONFUSION_FILE}."
    class_scores = [(row["name"], [_parse(row[f"{kind} AP"]) for kind in kinds]) for row in classes]
    sections: list[Section] = [
        Text("Small objects have at most 32², large ones at least 96² pixels of the stored images.", title="Sizes"),
        *_make_size_sections(sizes, kinds),
        Text(
            "Precision of the detections with the highest scores that find a fraction of the objects, the recall; mean "
            f"over the classes. Those of each class are in {folder}/{CURVES_FILE}.",
            title="Precision and recall",
        ),
        *(_make_curve_chart(curves, kind) for kind in kinds),
        Text(_describe_classes(classes), title="Classes"),
        *make_class_charts("AP", class_scores, [_KINDS[kind] for kind in kinds]),
        Text(_describe_errors(errors[0]["lowest score"]), title="Errors"),
        _make_error_table(errors),
        Text(f"Classes that detections give to objects of another class. {location}", title="Confusions"),
        *_make_confusions(confusion, [row["name"] for row in classes]),
    ]
    if (result_dir / EXAMPLES_FILE).exists():
        caption = "Images with the best detections, most misses, most false alarms, median quality, and no objects."
        sections += [Text("", title="Examples"), Figure(result_dir / EXAMPLES_FILE, caption)]
    return sections


def write_detection_report(run_dir: RunDir, result_dir: Path, init: str) -> None:
    """Write the page of a run from the files in its directory. `init` describes the initial weights."""
    rows = read_rows(run_dir.metrics)
    metrics = MetricColumns(rows)
    evaluated = [row for row in rows if "test/box_AP" in row]
    key_values = {}
    if evaluated:
        names = {"Box AP": "box_AP", "Box AP50": "box_AP50", "Mask AP": "mask_AP", "Mask AP50": "mask_AP50"}
        last = {name: evaluated[-1].get(f"test/{key}") for name, key in names.items()}
        key_values = {name: f"{value:.2f} %" for name, value in last.items() if value is not None}
    write_training_page(
        run_dir,
        "A fine-tuned detector",
        f"Initial weights: {init}.",
        key_values,
        "AP is that of the test images. The training loss is that of random crops.",
        [
            *(
                chart_metrics(
                    metrics,
                    f"{name} of {_KINDS[kind]}, %",
                    {"test": f"test/{kind}_{name}", "test, averaged weights": f"average/{kind}_{name}"},
                )
                for name in ("AP", "AP50")
                for kind in _KINDS
                if evaluated and f"test/{kind}_{name}" in evaluated[-1]
            ),
            chart_metrics(metrics, "Loss", {"training": "loss"}),
            chart_metrics(metrics, "Losses", {name.replace("_", " "): f"loss/{name}" for name in _LOSSES}),
            chart_metrics(metrics, "Learning rate", {"learning rate": "lr"}),
        ],
        make_detection_sections(result_dir),
        _NEXT_STEPS,
    )


_NEXT_STEPS = """\
`RUN` is the directory of this page; `RUN/best` has the weights with the highest AP on the test images.

    c2fmae eval detect RUN --set testing.short_side=1024 --set testing.max_side=1706
    c2fmae predict RUN IMAGES --out OUT"""


def _make_size_sections(sizes: Sequence[_Row], kinds: Sequence[str]) -> list[Section]:
    """Return a table of AP and AR by size, and a chart of AP; a size that no object has is shown as a dash."""
    columns = [f"{kind} {name}" for kind in kinds for name in ("AP", "AR")]
    rows = [(row["size"], f"{int(row['objects']):,}", *(row[column] or "–" for column in columns)) for row in sizes]
    bars = [(row["size"], [_parse(row[f"{kind} AP"]) for kind in kinds]) for row in sizes]
    return [
        Table("AP and AR by size, %", ("size", "objects", *columns), rows, "AR is that of 100 detections of a class."),
        BarChart("AP by size, %", bars, [_KINDS[kind] for kind in kinds]),
    ]


def _make_curve_chart(curves: Sequence[_Row], kind: str) -> Section:
    rows = [row for row in curves if (row["kind"], row["class"]) == (kind, MEAN_CURVE)]
    names = [name for name in curves[0] if name.startswith("precision")] if curves else []
    series = {
        name.removeprefix("precision at "): [(float(row["recall"]), float(row[name] or nan)) for row in rows]
        for name in names
    }
    return LineChart(
        f"Precision of {_KINDS[kind]}",
        series,
        x_label="recall",
        y_label="precision",
        y_range=(0.0, 1.0),
        names_last_values=False,
    )


def _describe_classes(classes: Sequence[_Row]) -> str:
    absent = [row["name"] for row in classes if row["objects"] == "0"]
    text = "AP of a class is the mean precision over recalls, and over IoUs from 0.5 to 0.95."
    return text + list_absent_classes(absent)


def _describe_errors(lowest_score: str) -> str:
    return (
        f"Kinds of errors of the detections with scores from {lowest_score}, as in TIDE. A detection is correct "
        "if its box overlaps an object of its class with an IoU of at least 0.5, and no detection with a higher score "
        "does. A badly placed one has an IoU of 0.1 to 0.5, one in the background less. Missed objects "
        "are paired with no detection."
    )


def _make_error_table(errors: Sequence[_Row]) -> Section:
    total = sum(int(row["count"]) for row in errors) or 1
    rows = [(row["error"], f"{int(row['count']):,}", f"{100 * int(row['count']) / total:.1f}") for row in errors]
    return Table("Errors", ("kind", "count", "% of all errors"), rows)


def _make_confusions(confusion: Sequence[_Row], names: Sequence[str]) -> list[Section]:
    counts = [[int(count) for count in [*row.values()][1:]] for row in confusion[: len(names)]]
    pairs = [row[: len(names)] for row in counts]
    return make_confusion_sections(pairs, [sum(row) for row in counts], names, "objects")


def _parse(text: str) -> float | None:
    return float(text) if text else None
