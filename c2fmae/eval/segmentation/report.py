"""The page of a segmentation run, and the sections on its classes, confusions and examples."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from c2fmae.core.csv_text import parse_csv
from c2fmae.core.errors import UserError
from c2fmae.core.files import read_text
from c2fmae.core.metric_columns import MetricColumns
from c2fmae.core.metric_rows import read_rows
from c2fmae.core.run_dir import RunDir
from c2fmae.eval.class_sections import list_absent_classes, make_class_charts, make_confusion_sections
from c2fmae.eval.training_report import write_training_page
from c2fmae.report import Figure, Section, Text
from c2fmae.report.charts import chart_metrics

CLASSES_FILE, CONFUSION_FILE, EXAMPLES_FILE = "classes.csv", "confusion.csv", "pictures/examples.png"

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
    folder = f"{result_dir.parent.name}/{result_dir.name}"  # from the page of the run
    location = f"All classes are in {folder}/{CLASSES_FILE}, all pairs in {folder}/{CONFUSION_FILE}."
    sections: list[Section] = [
        Text(_describe_classes(classes), title="Classes"),
        *make_class_charts("IoU", [(row["name"], (_parse_score(row["IoU"]),)) for row in classes], ("IoU",)),
        Text(f"Pairs of classes that are confused in most pixels. {location}", title="Confusions"),
        *make_confusion_sections(counts, [sum(row) for row in counts], names, "pixels"),
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
    metrics = MetricColumns(rows)
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
            chart_metrics(metrics, "mIoU, %", {"test": "test/mIoU", "test, averaged weights": "average/mIoU"}),
            chart_metrics(
                metrics, "Pixel accuracy, %", {"test": "test/aAcc", "test, averaged weights": "average/aAcc"}
            ),
            chart_metrics(metrics, "Loss", losses),
            chart_metrics(metrics, "Learning rate", {"learning rate": "lr"}),
        ],
        make_segmentation_sections(result_dir),
        _NEXT_STEPS,
    )


_NEXT_STEPS = """\
`RUN` is the directory of this page; `RUN/best` has the weights with the highest mIoU on the test images.

    c2fmae eval segment RUN --set testing.scales=[0.5,0.75,1,1.25,1.5,1.75] --set testing.flip=true
    c2fmae predict RUN IMAGES --out OUT
    c2fmae export hf RUN OUT"""


def _parse_score(text: str) -> float | None:
    return float(text) if text else None


def _describe_classes(classes: Sequence[_ClassRow]) -> str:
    absent = [row["name"] for row in classes if row["pixels"] == "0"]
    return (
        "The IoU of a class is the number of pixels that are of the class and predicted as such, divided by the "
        f"number of pixels that are either.{list_absent_classes(absent)}"
    )
