"""What a fine-tuning has found, in files and on its page."""

import csv
import io
from collections.abc import Mapping, Sequence
from math import isnan, nan
from pathlib import Path
from typing import Any

from c2fmae.core.environment import collect_environment
from c2fmae.core.labels import LabelInfo
from c2fmae.core.metric_rows import read_rows
from c2fmae.core.run_dir import RunDir
from c2fmae.core.training import TrainingPlan
from c2fmae.data import DatasetInfo
from c2fmae.eval.classification.accuracy import ClassificationScores
from c2fmae.eval.classification.config import FinetuneConfig
from c2fmae.eval.metrics import Metric, build_accuracy_metric
from c2fmae.eval.results import RESULT_FORMAT, EvaluationResult, load_result, make_result_sections, save_result
from c2fmae.report import Details, KeyValues, LineChart, Page, Section, Table, Text, render_page

FINETUNE_EVALUATION = "finetune"
PER_CLASS_FILE = "classes.csv"
_NUM_CLASSES_SHOWN = 10  # classes of each end on the page


def locate_result_dir(run_dir: Path) -> Path:
    """Return where a run's result lies, beside those of other evaluations of its weights."""
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
    title = f"{config.init}, from scratch" if config.from_scratch else config.init
    result = EvaluationResult(
        FINETUNE_EVALUATION, title, protocol, tuple(metrics), locate_result_dir(run_dir.path), is_new=True
    )
    metadata = {
        "format": RESULT_FORMAT,
        "evaluation": FINETUNE_EVALUATION,
        "config": config.model_dump(mode="json"),
        "weights": weights_digest,
        "protocol": protocol,
        "load_report": load_report,
        "environment": collect_environment(world_size=world_size),
    }
    save_result(result, metadata)


def build_finetune_metrics(
    scores: ClassificationScores,
    ema_scores: ClassificationScores | None,
    scores_by_granularities: Mapping[tuple[str, ...], ClassificationScores],
    best: tuple[int | None, float],
) -> list[Metric]:
    """Return the numbers, those of the last weights first."""
    metrics = _scores_to_metrics(scores)
    if ema_scores is not None:
        metrics += _scores_to_metrics(ema_scores, weights="averaged")
    for names, input_scores in scores_by_granularities.items():
        metrics += _scores_to_metrics(input_scores, input=", ".join(names))
    if best[0] is not None:
        note = f"step {best[0]:,}: chosen on the test photos themselves, so it flatters"
        metrics.append(Metric("best_top1", 100 * best[1], scores.num_images, notes=(note,)))
    return metrics


def _scores_to_metrics(scores: ClassificationScores, **tags: str) -> list[Metric]:
    count, notes = scores.num_images, (f"{scores.num_tokens} tokens of patches an image",)
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
    """Say what was done, so that a number can stand beside another's."""
    data, mixing, training = config.data, config.mixing, config.training
    clauses = [
        f"Fine-tuned for {plan.steps / plan.steps_per_epoch:.4g} epochs of {train_name} at "
        f"{image_size[0]}×{image_size[1]}",
        f"from {_describe_init(config)}",
        f"batch {plan.batch_size}, AdamW, rate up to {plan.peak_lr:.3g}, {plan.warmup_steps} steps of warm-up, a "
        "cosine",
        f"weight decay {training.weight_decay:g}, layer decay {training.layer_decay:g}, drop path {config.drop_path:g}",
        f"crops of {data.scale[0]:g} to {data.scale[1]:g} of a photo, {data.rand_augment or 'no RandAugment'}",
        f"erasing {data.erasing:g}, Mixup {mixing.mixup:g}, CutMix {mixing.cutmix:g}, smoothing {mixing.smoothing:g}",
        *([f"images of {100 * mixing.chance:g} % of the steps mixed"] if mixing.chance != 1 else []),
        *([f"{data.repeats} views of a photo in a batch"] if data.repeats != 1 else []),
        *([f"gradients clipped to {training.clip:g}"] if training.clip else []),
        *([f"weights averaged by {training.ema:g}"] if training.ema is not None else []),
        "pooled by the mean, with a norm behind it" if config.pool == "mean" else "pooled by the global token",
    ]
    if config.train_blocks is not None:
        clauses.append(f"the last {config.train_blocks} blocks alone were trained")
    if data.fraction != 1:
        clauses.append(f"with {100 * data.fraction:g} % of each class's labels")
    if config.granularity_dropout:
        clauses.append(f"each granularity left out of {100 * config.granularity_dropout:g} % of the steps")
    names = ", ".join(data.granularities)
    text = f"{'; '.join(clauses)}. It sees {names}. Tried on {test_name}, the central {100 * data.crop:g} %. "
    text += "Accuracy in percent over all test photos, with Wilson's 95 % interval; the last weights are what counts."
    return f"{text} {describe_label_leak(data.granularities, info)}".strip()


def _describe_init(config: FinetuneConfig) -> str:
    if config.from_scratch:
        return "weights drawn anew"
    step = f", step {config.step:,}" if config.step else ""
    return f"{config.init}{step}{', averaged weights' * config.average}"


def describe_label_leak(granularities: Sequence[str], info: DatasetInfo) -> str:
    """Return a warning where maps may hold the answer."""
    if tuple(granularities) == ("rgb",) or info.maps_know_labels is False:
        return ""
    if info.maps_know_labels:
        return (
            "Warning: whoever made the maps knew the photos' labels, so a map may hold the answer; this number says "
            "how well it is read there, and does not stand beside one of photos alone."
        )
    return (
        "Warning: the data does not say whether whoever made its maps knew the photos' labels (maps_know_labels in "
        "dataset.json); if so, a map may hold the answer."
    )


def write_per_class_csv(run_dir: RunDir, scores: ClassificationScores, labels: Sequence[LabelInfo | None]) -> None:
    """Write for each class how often it was right, and what it was mistaken for most."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("label", "wnid", "name", "images", "right", "accuracy", "mistaken for", "times"))
    rows.writerows(_per_class_rows(scores, labels))
    locate_result_dir(run_dir.path).mkdir(parents=True, exist_ok=True)
    run_dir.write_text(str(locate_result_dir(run_dir.path).relative_to(run_dir.path) / PER_CLASS_FILE), text.getvalue())


def _per_class_rows(scores: ClassificationScores, labels: Sequence[LabelInfo | None]) -> list[tuple[Any, ...]]:
    counts, right = scores.confusion.sum(dim=1).tolist(), scores.confusion.diagonal().tolist()
    accuracies, confused = scores.per_class_accuracy().tolist(), scores.most_confused_labels()
    names = [(each.wnid or "", each.name) if each else ("", "") for each in labels]
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
    """Write the page about a fine-tuned run, of what lies in its folder."""
    rows = read_rows(run_dir.metrics)
    config = FinetuneConfig.from_yaml(run_dir.config_path)
    key_values = {"Steps": f"{max((row['step'] for row in rows), default=0):,}"}
    evaluated = [row for row in rows if "test/top-1" in row]
    if evaluated:
        key_values |= {"Top-1": f"{evaluated[-1]['test/top-1']:.2f} %", "Top-5": f"{evaluated[-1]['test/top-5']:.2f} %"}
    accuracy = {"test": "test/top-1", "test, averaged weights": "average/top-1"}
    losses = {"training, of mixed images": "loss", "test": "test/loss"}
    sections: list[Section] = [
        KeyValues(key_values),
        Text("Of the test photos; training's loss is that of mixed and changed photos.", title="How it went"),
        _metric_chart(rows, "Top-1, %", accuracy),
        _metric_chart(rows, "Loss", losses),
        _metric_chart(rows, "Learning rate", {"learning rate": "lr"}),
        *make_result_sections(run_dir.path),
        *_per_class_sections(locate_result_dir(run_dir.path) / PER_CLASS_FILE),
        Details("All settings", run_dir.config_path.read_text(encoding="utf-8").strip()),
        Details("Environment", (run_dir.path / "environment.json").read_text(encoding="utf-8").strip()),
        Text(_FINETUNE_NEXT_STEPS, title="What to type next"),
    ]
    start = "weights drawn anew" if config.from_scratch else f"the weights of {config.init}"
    run_dir.write_text(
        run_dir.report.name, render_page(Page("A fine-tuned classifier", f"It began with {start}.", sections))
    )


_FINETUNE_NEXT_STEPS = """\
`RUN` is the folder that this page lies in; `RUN/best` holds the weights that did best on the test photos.

    c2fmae eval robustness RUN --custom NAME=FOLDER
    c2fmae export timm RUN OUT"""


def _metric_chart(rows: Sequence[Mapping[str, Any]], title: str, keys: Mapping[str, str]) -> LineChart:
    curves = {
        name: [(row["step"], nan if row[key] is None else row[key]) for row in rows if key in row]
        for name, key in keys.items()
    }
    return LineChart(title, {name: curve for name, curve in curves.items() if curve})


def _per_class_sections(path: Path) -> list[Section]:
    """Return the classes that are told worst and best."""
    try:
        rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    except OSError:
        return []
    ranked = sorted((row for row in rows if row["accuracy"]), key=lambda row: float(row["accuracy"]))
    shown = (
        ranked
        if len(ranked) <= 2 * _NUM_CLASSES_SHOWN
        else [*ranked[:_NUM_CLASSES_SHOWN], *ranked[-_NUM_CLASSES_SHOWN:]]
    )
    columns = ("name", "accuracy", "images", "mistaken for", "times")
    note = f"All are in {path.parent.name}/{path.name}." if len(shown) < len(ranked) else ""
    table = Table("Classes, worst first", columns, [tuple(row[column] for column in columns) for row in shown], note)
    return [Text("", title="Class by class"), table]


def read_finetune_result(run_dir: Path) -> EvaluationResult:
    """Return what was written down."""
    return load_result(locate_result_dir(run_dir))
