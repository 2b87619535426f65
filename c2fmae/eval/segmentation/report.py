"""The page of a segmentation run, and the sections on its classes, confusions and examples."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from c2fmae.core.csv_text import parse_csv
from c2fmae.core.errors import UserError
from c2fmae.core.files import read_text
from c2fmae.core.metric_rows import read_rows
from c2fmae.core.run_dir import RunDir
from c2fmae.eval.training_report import write_training_page
from c2fmae.report import BarChart, Figure, HeatMap, Section, Table, Text
from c2fmae.report.charts import chart_metrics

CLASSES_FILE, CONFUSION_FILE, EXAMPLES_FILE = "classes.csv", "confusion.csv", "pictures/examples.png"

_NUM_PAIRS = 12  # in the heat map
_NUM_BARS = 20  # of the best classes, and of the worst
_ClassRow = Mapping[str, str]


def make_segmentation_sections(result_dir: Path) -> list[Section]:
    """Return the sections on a result, from the files in its directory; none for files that are missing."""
    try:
        classes = parse_csv(read_text(result_dir / CLASSES_FILE))
        confusion = [[*row.values()] for row in parse_csv(read_text(result_dir / CONFUSION_FILE))]
    except UserError:
        return []
    counts = [[int(count) for count in row[1:]] for row in confusion]
    names = [row["name"] for row in classes]
    location = f"All classes are in {result_dir.name}/{CLASSES_FILE}, all pairs in {result_dir.name}/{CONFUSION_FILE}."
    sections: list[Section] = [
        Text(_describe_classes(classes), title="Classes"),
        *_make_iou_charts(classes),
        Text(f"Pairs of classes that are confused in most pixels. {location}", title="Confusions"),
        *_make_confusion_sections(counts, names),
    ]
    if (result_dir / EXAMPLES_FILE).exists():
        sections += [
            Text("", title="Examples"),
            Figure(result_dir / EXAMPLES_FILE, "The images with the highest, the median and the lowest IoU."),
        ]
    return sections


def write_segmentation_report(run_dir: RunDir, result_dir: Path, init: str) -> None:
    """Write the page of a run from the files in its directory. `init` describes the initial weights."""
    rows = read_rows(run_dir.metrics)
    evaluated = [row for row in rows if "test/mIoU" in row]
    key_values = {}
    if evaluated:
        names = {"mIoU": "mIoU", "Mean accuracy": "mAcc", "Pixel accuracy": "aAcc"}
        key_values = {name: f"{evaluated[-1][f'test/{key}']:.2f} %" for name, key in names.items()}
    losses = {"training": "loss", "head": "loss/main", "auxiliary head": "loss/auxiliary"}
    write_training_page(
        run_dir,
        "A fine-tuned segmenter",
        f"Initial weights: {init}.",
        key_values,
        "mIoU is that of the test images. The training loss is that of random crops.",
        [
            chart_metrics(rows, "mIoU, %", {"test": "test/mIoU", "test, averaged weights": "average/mIoU"}),
            chart_metrics(rows, "Pixel accuracy, %", {"test": "test/aAcc", "test, averaged weights": "average/aAcc"}),
            chart_metrics(rows, "Loss", losses),
            chart_metrics(rows, "Learning rate", {"learning rate": "lr"}),
        ],
        make_segmentation_sections(result_dir),
        _NEXT_STEPS,
    )


_NEXT_STEPS = """\
`RUN` is the directory of this page; `RUN/best` has the weights with the highest mIoU on the test images.

    c2fmae eval segment RUN --set testing.scales=[0.5,0.75,1,1.25,1.5,1.75] --set testing.flip=true
    c2fmae predict RUN IMAGES --out OUT
    c2fmae export hf RUN OUT"""


def _describe_classes(classes: Sequence[_ClassRow]) -> str:
    absent = [row["name"] for row in classes if row["pixels"] == "0"]
    text = "The IoU of a class is the number of pixels that are of the class and predicted as such, divided by the "
    text += "number of pixels that are either."
    if absent:
        shown = ", ".join(absent[:_NUM_PAIRS])
        more = f" and {len(absent) - _NUM_PAIRS} more" if len(absent) > _NUM_PAIRS else ""
        text += f" Classes that do not occur in the test images: {shown}{more}."
    return text


def _make_iou_charts(classes: Sequence[_ClassRow]) -> list[Section]:
    """Return charts of the IoU of all classes, or of the best and of the worst, highest first."""
    scored = [(row["name"], float(row["IoU"])) for row in classes if row["IoU"]]
    scored.sort(key=lambda entry: -entry[1])
    charts = {"IoU of classes, %": scored}
    if len(scored) > 2 * _NUM_BARS:
        charts = {"Highest IoU, %": scored[:_NUM_BARS], "Lowest IoU, %": scored[-_NUM_BARS:]}
    elif len(scored) > _NUM_BARS:  # in two columns
        middle = (len(scored) + 1) // 2
        charts = {"IoU of classes, %": scored[:middle], "IoU of classes, % (continued)": scored[middle:]}
    return [BarChart(title, [(name, (iou,)) for name, iou in bars], ("IoU",)) for title, bars in charts.items()]


def _make_confusion_sections(counts: Sequence[Sequence[int]], names: Sequence[str]) -> list[Section]:
    """Return a heat map of the classes in the most confused pairs, and a table of the pairs."""
    pairs = list_confused_pairs(counts)[:_NUM_PAIRS]
    if not pairs:
        return [Text("No pixel is predicted wrongly.")]
    true, predicted = (list(dict.fromkeys(pair[side] for pair in pairs)) for side in (0, 1))
    columns = [*true, *(class_id for class_id in predicted if class_id not in true)]
    totals = {class_id: sum(counts[class_id]) for class_id in true}
    values = [[100 * counts[i][j] / totals[i] if counts[i][j] else None for j in columns] for i in true]
    rows = [(names[i], names[j], f"{counts[i][j]:,}", f"{100 * counts[i][j] / totals[i]:.1f}") for i, j in pairs]
    return [
        HeatMap(
            "Predictions of the classes that are confused most",
            [names[class_id] for class_id in true],
            [names[class_id] for class_id in columns],
            values,
            "Each row is a true class: the percentages of its pixels by predicted class. Other predictions are left "
            "out.",
        ),
        Table("Most confused pairs", ("truth", "predicted as", "pixels", "% of the true class"), rows),
    ]


def list_confused_pairs(counts: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """Return all pairs of a true and another predicted class that occur, most pixels first, then by class.

    >>> list_confused_pairs([[9, 1, 4], [0, 9, 0], [4, 6, 9]])
    [(2, 1), (0, 2), (2, 0), (0, 1)]
    """
    pairs = [(i, j) for i, row in enumerate(counts) for j, count in enumerate(row) if i != j and count]
    return sorted(pairs, key=lambda pair: -counts[pair[0]][pair[1]])
