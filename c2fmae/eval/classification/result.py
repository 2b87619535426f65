"""Results of fine-tuning: metrics, protocol, files and page."""

from collections.abc import Mapping, Sequence
from math import isnan
from pathlib import Path
from typing import Any

from c2fmae.core.csv_text import format_csv, parse_csv
from c2fmae.core.environment import collect_environment
from c2fmae.core.errors import UserError
from c2fmae.core.files import read_text, write_atomic
from c2fmae.core.labels import LabelInfo
from c2fmae.core.metric_columns import MetricColumns
from c2fmae.core.metric_rows import read_rows
from c2fmae.core.run_dir import RunDir
from c2fmae.core.text import format_count
from c2fmae.core.training import TrainingPlan
from c2fmae.data import DatasetInfo
from c2fmae.eval.best_checkpoint import BestScore
from c2fmae.eval.classification.accuracy import ClassificationScores
from c2fmae.eval.classification.config import FinetuneConfig
from c2fmae.eval.classification.evaluation import FinetuneEvaluation
from c2fmae.eval.metrics import Metric, build_accuracy_metric
from c2fmae.eval.results import RESULT_FORMAT, EvaluationResult, load_result, save_result
from c2fmae.eval.training_protocol import describe_clipping, describe_frozen, describe_optimisation
from c2fmae.eval.training_report import write_training_page
from c2fmae.report import Section, Table, Text
from c2fmae.report.charts import chart_metrics

FINETUNE_EVALUATION = "finetune"
PER_CLASS_FILE = "classes.csv"
_NUM_CLASSES_SHOWN = 10  # in each table of the page
_CLASS_COLUMNS = ("", "accuracy, %", "images", "most often mistaken for")


def locate_result_dir(run_dir: Path) -> Path:
    """Return the directory of a run's result, next to other evaluations of its weights."""
    return run_dir / "evaluations" / FINETUNE_EVALUATION


def write_finetune_result(
    run_dir: RunDir,
    config: FinetuneConfig,
    metrics: Sequence[Metric],
    protocol: str,
    weights_digest: str,
    load_report: str,
    world_size: int,
) -> None:
    """Write the result of the last weights; `load_report` lists what was loaded."""
    result = EvaluationResult(
        FINETUNE_EVALUATION, config.title, protocol, tuple(metrics), locate_result_dir(run_dir.path), is_new=True
    )
    metadata = {
        "format": RESULT_FORMAT,
        "evaluation": FINETUNE_EVALUATION,
        "protocol_version": FinetuneEvaluation.protocol_version,
        "config": config.model_dump(mode="json"),
        "weights": weights_digest,
        "inputs": {},
        "load_report": load_report,
        "environment": collect_environment(world_size=world_size),
    }
    save_result(result, metadata)


def build_finetune_metrics(
    scores: ClassificationScores,
    ema_scores: ClassificationScores | None,
    scores_by_granularities: Mapping[tuple[str, ...], ClassificationScores],
    best: BestScore | None,
) -> list[Metric]:
    """Return the metrics, those of the last weights first."""
    metrics = _scores_to_metrics(scores)
    if ema_scores is not None:
        metrics += _scores_to_metrics(ema_scores, weights="averaged")
    for names, input_scores in scores_by_granularities.items():
        metrics += _scores_to_metrics(input_scores, input=", ".join(names))
    if best is not None:
        metrics.append(best.to_metric("best_top1", scores.num_images))
    return metrics


def _scores_to_metrics(scores: ClassificationScores, **tags: str) -> list[Metric]:
    count, notes = scores.num_images, (f"{format_count(scores.num_tokens, 'patch token')} per image",)
    return [
        build_accuracy_metric("top1", scores.top1, count, tags=tags, notes=notes),
        *([build_accuracy_metric("top5", scores.top5, count, tags=tags)] if len(scores.confusion) > 5 else []),
        Metric("loss", scores.loss, count, tags=tags),
    ]


def describe_finetune_protocol(
    config: FinetuneConfig,
    plan: TrainingPlan,
    *,
    train_name: str,
    test_name: str,
    image_size: tuple[int, int],
    info: DatasetInfo,
) -> str:
    """Return a description of training and test, so that readers can compare results with others."""
    data, mixing, training = config.data, config.mixing, config.training
    clauses = [
        *describe_optimisation(config, training, plan, train_name, image_size),
        f"crops of {data.scale[0]:g} to {data.scale[1]:g} of an image, {data.rand_augment or 'no RandAugment'}",
        f"erasing {data.erasing:g}, Mixup {mixing.mixup:g}, CutMix {mixing.cutmix:g}, smoothing {mixing.smoothing:g}",
        *([f"images of {100 * mixing.chance:g} % of the steps mixed"] if mixing.chance != 1 else []),
        *([f"{data.repeats} views of an image in a batch"] if data.repeats != 1 else []),
        *describe_clipping(training),
        "mean pooling followed by a norm" if config.pool == "mean" else "class token pooling",
        *describe_frozen(config),
    ]
    if data.fraction != 1:
        clauses.append(f"with {100 * data.fraction:g} % of each class's labels")
    if config.granularity_dropout:
        clauses.append(f"each granularity left out in {100 * config.granularity_dropout:g} % of the steps")
    text = (
        f"{'; '.join(clauses)}. Inputs: {', '.join(data.granularities)}. Tested on {test_name}, the central "
        f"{100 * data.crop:g} %. Accuracy in percent over all test images, with Wilson's 95 % interval; the last "
        "weights are the result."
    )
    return f"{text} {describe_label_leak(data.granularities, info)}".strip()


def describe_label_leak(granularities: Sequence[str], info: DatasetInfo) -> str:
    """Return a warning if maps that are used as input may reveal the label; an empty string otherwise."""
    if tuple(granularities) == ("rgb",) or info.maps_know_labels is False:
        return ""
    if info.maps_know_labels:
        return (
            "Warning: the maps were made with knowledge of the labels, so they may reveal them. This accuracy "
            "cannot be compared with that of images alone."
        )
    return (
        "Warning: the data does not state whether its maps were made with knowledge of the labels (maps_know_labels in "
        "dataset.json); if so, they may reveal them."
    )


def write_per_class_csv(run_dir: RunDir, scores: ClassificationScores, labels: Sequence[LabelInfo | None]) -> None:
    """Write the accuracy of each class and its most frequent confusion."""
    header = ("label", "wnid", "name", "images", "right", "accuracy", "mistaken for", "times")
    text = format_csv(header, _per_class_rows(scores, labels))
    write_atomic(locate_result_dir(run_dir.path) / PER_CLASS_FILE, text.encode())


def _per_class_rows(scores: ClassificationScores, labels: Sequence[LabelInfo | None]) -> list[tuple[Any, ...]]:
    counts, right = scores.confusion.sum(dim=1).tolist(), scores.confusion.diagonal().tolist()
    accuracies, confused = scores.per_class_accuracy().tolist(), scores.most_confused_labels()
    names = [(info.wnid or "", info.name) if info else ("", "") for info in labels]
    return [
        (
            label,
            *names[label],
            counts[label],
            right[label],
            "" if isnan(accuracies[label]) else f"{100 * accuracies[label]:.2f}",
            names[confused[label][0]][1] if confused[label][1] else "",
            confused[label][1],
        )
        for label in range(len(labels))
    ]


def write_finetune_report(run_dir: RunDir) -> None:
    """Write the page of a run from the files in its directory."""
    rows = read_rows(run_dir.metrics)
    metrics = MetricColumns(rows)
    config = FinetuneConfig.from_yaml(run_dir.config_path)
    key_values = {}
    evaluated = [row for row in rows if "test/top-1" in row]
    if evaluated:
        key_values = {"Top-1": f"{evaluated[-1]['test/top-1']:.2f} %", "Top-5": f"{evaluated[-1]['test/top-5']:.2f} %"}
    accuracy = {"test": "test/top-1", "test, averaged weights": "average/top-1"}
    losses = {"training": "loss", "test": "test/loss"}
    write_training_page(
        run_dir,
        "A fine-tuned classifier",
        f"Initial weights: {config.describe_init()}.",
        key_values,
        "Accuracy is on the test images. The training loss is on mixed and augmented images.",
        [
            chart_metrics(metrics, "Top-1, %", accuracy),
            chart_metrics(metrics, "Loss", losses),
            chart_metrics(metrics, "Learning rate", {"learning rate": "lr"}),
        ],
        make_class_sections(locate_result_dir(run_dir.path) / PER_CLASS_FILE),
        _FINETUNE_NEXT_STEPS,
    )


_FINETUNE_NEXT_STEPS = """\
`RUN` is the directory of this page; `RUN/best` has the weights with the highest accuracy on the test images.

    c2fmae eval robustness RUN --custom NAME=DIR
    c2fmae export timm RUN OUT"""


def make_class_sections(path: Path) -> list[Section]:
    """Return tables of the classes with the lowest and the highest accuracy; no class is in both."""
    try:
        rows = parse_csv(read_text(path))
    except UserError:
        return []
    ranked = sorted((row for row in rows if row["accuracy"]), key=lambda row: float(row["accuracy"]))
    num_worst = min(_NUM_CLASSES_SHOWN, (len(ranked) + 1) // 2)
    best = ranked[max(num_worst, len(ranked) - _NUM_CLASSES_SHOWN) :][::-1]
    note = f"All classes are in {path.parent.name}/{path.name}." if num_worst + len(best) < len(ranked) else ""
    tables = {"Classes with the lowest accuracy": ranked[:num_worst], "Classes with the highest accuracy": best}
    return [
        Text("", title="Classes"),
        *(
            Table(caption, _CLASS_COLUMNS, [_class_row(row) for row in members], note)
            for caption, members in tables.items()
            if members
        ),
    ]


def _class_row(row: Mapping[str, str]) -> tuple[str, ...]:
    confusion = f"{row['mistaken for']} ({row['times']})" if row["mistaken for"] else ""
    return (row["name"] or f"label {row['label']}", row["accuracy"], row["images"], confusion)


def read_finetune_result(run_dir: Path) -> EvaluationResult:
    """Return the stored result of a run."""
    return load_result(locate_result_dir(run_dir))
