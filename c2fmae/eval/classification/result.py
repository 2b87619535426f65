"""What a fine-tuning has found, in files and on its page."""

import csv
import io
from collections.abc import Mapping, Sequence
from math import isnan, nan
from pathlib import Path
from typing import Any

from c2fmae.core.environment import environment
from c2fmae.core.labels import LabelInfo
from c2fmae.core.run_dir import RunFolder, read_rows
from c2fmae.core.training import Plan
from c2fmae.data import DatasetInfo
from c2fmae.eval.classification.accuracy import Accuracy
from c2fmae.eval.classification.config import FinetuneConfig
from c2fmae.eval.evaluation import Metric
from c2fmae.eval.probes.intervals import wilson
from c2fmae.eval.results import FORMAT, Result, result_of, sections_of, write_down
from c2fmae.report import Curves, Details, Facts, Page, Section, Table, Text, render

NAME = "finetune"
CLASSES = "classes.csv"
_SHOWN = 10  # classes of each end on the page


def folder_of_result(run: Path) -> Path:
    """Return where a run's result lies, beside those of other evaluations of its weights."""
    return run / "evaluations" / NAME


def write_result(
    run: RunFolder,
    config: FinetuneConfig,
    metrics: Sequence[Metric],
    protocol: str,
    weights: str,
    report: str,
    processes: int,
) -> None:
    """Write down what the last weights are worth; `weights` is their digest, `report` tells what was loaded."""
    title = f"{config.init}, from scratch" if config.from_scratch else config.init
    result = Result(NAME, title, protocol, tuple(metrics), folder_of_result(run.path), is_new=True)
    facts = {
        "format": FORMAT,
        "evaluation": NAME,
        "config": config.model_dump(mode="json"),
        "weights": weights,
        "protocol": protocol,
        "load_report": report,
        "environment": environment(world_size=processes),
    }
    write_down(result, facts)


def metrics_of(
    found: Accuracy,
    averaged: Accuracy | None,
    others: Mapping[tuple[str, ...], Accuracy],
    best: tuple[int | None, float],
) -> list[Metric]:
    """Return the numbers, those of the last weights first."""
    metrics = _told(found, "")
    if averaged is not None:
        metrics += _told(averaged, ", averaged weights")
    for names, accuracy in others.items():
        metrics += _told(accuracy, f", tried with {' and '.join(names)}")
    if best[0] is not None:
        note = f"step {best[0]:,}: chosen on the test photos themselves, so it flatters"
        metrics.append(Metric("best top-1", 100 * best[1], found.count, None, note))
    return metrics


def _told(found: Accuracy, suffix: str) -> list[Metric]:
    note = f"{found.tokens} tokens of patches an image"
    first = Metric(f"top-1{suffix}", 100 * found.top1, found.count, wilson(found.top1, found.count, scale=100), note)
    five = Metric(f"top-5{suffix}", 100 * found.top5, found.count, wilson(found.top5, found.count, scale=100))
    return [first, *([five] if len(found.confusion) > 5 else []), Metric(f"loss{suffix}", found.loss, found.count)]


def protocol_of(
    config: FinetuneConfig, plan: Plan, *, train: str, test: str, size: tuple[int, int], info: DatasetInfo
) -> str:
    """Say what was done, so that a number can stand beside another's."""
    data, mixing, training = config.data, config.mixing, config.training
    parts = [
        f"Fine-tuned for {plan.steps / plan.steps_per_epoch:.4g} epochs of {train} at {size[0]}×{size[1]}",
        f"from {_start_of(config)}",
        f"batch {plan.batch_size}, AdamW, rate up to {plan.peak:.3g}, {plan.warmup} steps of warm-up, a cosine",
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
        parts.append(f"the last {config.train_blocks} blocks alone were trained")
    if data.fraction != 1:
        parts.append(f"with {100 * data.fraction:g} % of each class's labels")
    if config.granularity_dropout:
        parts.append(f"each granularity left out of {100 * config.granularity_dropout:g} % of the steps")
    names = ", ".join(data.granularities)
    text = f"{'; '.join(parts)}. It sees {names}. Tried on {test}, the central {100 * data.crop:g} %. "
    text += "Accuracy in percent over all test photos, with Wilson's 95 % interval; the last weights are what counts."
    return f"{text} {leak_of(data.granularities, info)}".strip()


def _start_of(config: FinetuneConfig) -> str:
    if config.from_scratch:
        return "weights drawn anew"
    step = f", step {config.step:,}" if config.step else ""
    return f"{config.init}{step}{', averaged weights' * config.average}"


def leak_of(granularities: Sequence[str], info: DatasetInfo) -> str:
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


def write_classes(run: RunFolder, found: Accuracy, labels: Sequence[LabelInfo | None]) -> None:
    """Write for each class how often it was right, and what it was mistaken for most."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("label", "wnid", "name", "images", "right", "accuracy", "mistaken for", "times"))
    rows.writerows(_class_rows(found, labels))
    folder_of_result(run.path).mkdir(parents=True, exist_ok=True)
    run.write_text(str(folder_of_result(run.path).relative_to(run.path) / CLASSES), text.getvalue())


def _class_rows(found: Accuracy, labels: Sequence[LabelInfo | None]) -> list[tuple[Any, ...]]:
    counts, right = found.confusion.sum(dim=1).tolist(), found.confusion.diagonal().tolist()
    shares, mistaken = found.of_each().tolist(), found.mistaken_for()
    names = [(each.wnid or "", each.name) if each else ("", "") for each in labels]
    return [
        (
            label,
            *names[label],
            counts[label],
            right[label],
            "" if isnan(shares[label]) else f"{100 * shares[label]:.2f}",
            names[mistaken[label][0]][1] if mistaken[label][1] else "",
            mistaken[label][1],
        )
        for label in range(len(labels))
    ]


def write_page(run: RunFolder) -> None:
    """Write the page about a fine-tuned run, of what lies in its folder."""
    rows = read_rows(run.metrics)
    config = FinetuneConfig.from_yaml(run.config_path)
    facts = {"Steps": f"{max((row['step'] for row in rows), default=0):,}"}
    tried = [row for row in rows if "test/top-1" in row]
    if tried:
        facts |= {"Top-1": f"{tried[-1]['test/top-1']:.2f} %", "Top-5": f"{tried[-1]['test/top-5']:.2f} %"}
    accuracy = {"test": "test/top-1", "test, averaged weights": "average/top-1"}
    losses = {"training, of mixed images": "loss", "test": "test/loss"}
    sections: list[Section] = [
        Facts(facts),
        Text("Of the test photos; training's loss is that of mixed and changed photos.", title="How it went"),
        _chart(rows, "Top-1, %", accuracy),
        _chart(rows, "Loss", losses),
        _chart(rows, "Learning rate", {"learning rate": "lr"}),
        *sections_of(run.path),
        *_class_sections(folder_of_result(run.path) / CLASSES),
        Details("All settings", run.config_path.read_text(encoding="utf-8").strip()),
        Details("Environment", (run.path / "environment.json").read_text(encoding="utf-8").strip()),
        Text(_NEXT, title="What to type next"),
    ]
    start = "weights drawn anew" if config.from_scratch else f"the weights of {config.init}"
    run.write_text(run.report.name, render(Page("A fine-tuned classifier", f"It began with {start}.", sections)))


_NEXT = """\
`RUN` is the folder that this page lies in; `RUN/best` holds the weights that did best on the test photos.

    c2fmae eval robustness RUN --custom NAME=FOLDER
    c2fmae export timm RUN OUT"""


def _chart(rows: Sequence[Mapping[str, Any]], title: str, keys: Mapping[str, str]) -> Curves:
    curves = {
        name: [(row["step"], nan if row[key] is None else row[key]) for row in rows if key in row]
        for name, key in keys.items()
    }
    return Curves(title, {name: curve for name, curve in curves.items() if curve})


def _class_sections(path: Path) -> list[Section]:
    """Return the classes that are told worst and best."""
    try:
        rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    except OSError:
        return []
    told = sorted((row for row in rows if row["accuracy"]), key=lambda row: float(row["accuracy"]))
    few = told if len(told) <= 2 * _SHOWN else [*told[:_SHOWN], *told[-_SHOWN:]]
    columns = ("name", "accuracy", "images", "mistaken for", "times")
    note = f"All are in {path.parent.name}/{path.name}." if len(few) < len(told) else ""
    table = Table("Classes, worst first", columns, [tuple(row[column] for column in columns) for row in few], note)
    return [Text("", title="Class by class"), table]


def read_result(run: Path) -> Result:
    """Return what was written down."""
    return result_of(folder_of_result(run))
