"""The origin of a model's weights, for the model card: data, training, validation losses and evaluation results."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from c2fmae.config.migrations import migrate_finetuning, migrate_pretraining
from c2fmae.core.errors import UserError
from c2fmae.core.json_file import read_json
from c2fmae.core.metric_rows import iterate_rows_from_end
from c2fmae.core.run_dir import RunDir, find_checkpoint
from c2fmae.core.run_info import RunInfo, is_run_or_checkpoint
from c2fmae.eval.metrics import Metric, select_headlines
from c2fmae.exports.config_text import (
    get_option,
    option_text,
    strip_folders,
    summarise_detection,
    summarise_finetuning,
    summarise_pretraining,
    summarise_segmentation,
)
from c2fmae.models.backbones.timm_reader import TIMM_PREFIX

_HELD_OUT_PREFIX = "held_out/"
_MAX_RESULT_BYTES = 1 << 26
_TEST_PREFIXES = {False: "test/", True: "average/"}
"""Prefixes of test scores in `metrics.jsonl`, by whether they are those of averaged weights."""
_ABSOLUTE_FOLDERS = re.compile(r"(?<![\w:/])/(?:[^\s/,]+/)+")  # in the middle of a sentence


@dataclass(frozen=True, kw_only=True)
class EvaluationRow:
    """One headline of an evaluation in the run directory."""

    evaluation: str
    source: str
    metric: str
    value: str
    count: str
    weights: str
    """Digest of the evaluated weights."""
    protocol: str


@dataclass(frozen=True, kw_only=True)
class WeightsProvenance:
    """The origin of weights. It holds no absolute paths, because a card is published."""

    name: str
    title: str = ""
    details: Mapping[str, str]
    """Known details of the training, by title."""
    deviations: Sequence[str] = ()
    held_out_metrics: Mapping[str, float] | None = None
    """The last metrics on data that was never trained on; None if there are none."""
    metrics_step: int = 0
    is_ema: bool = False
    """Whether the weights are averaged by `training.ema` while the metrics are those of the trained weights."""
    is_finetuned: bool = False
    """Whether the weights are those of a classifier, segmenter or detector, and the metrics its scores."""
    evaluations: Sequence[EvaluationRow] = ()
    missing_details: Sequence[str] = ()


def read_provenance(source: str, *, step: int | None = None, use_ema: bool = False) -> WeightsProvenance:
    """Return the provenance of a source. For other sources than runs and checkpoints, only the name is known."""
    path = Path(source)
    if not source.startswith(TIMM_PREFIX) and is_run_or_checkpoint(path):
        return _read_run_provenance(path, step, use_ema)
    name = source.removeprefix(TIMM_PREFIX).partition("@")[0] if source.startswith(TIMM_PREFIX) else path.resolve().name
    return WeightsProvenance(
        name=name,
        details={"Source": f"{strip_folders(source)}, which holds weights and no record of their training"},
        missing_details=["data", "steps", "training options"],
    )


def _read_run_provenance(path: Path, step: int | None, use_ema: bool) -> WeightsProvenance:
    checkpoint = find_checkpoint(path, step)
    info = RunInfo.from_checkpoint(checkpoint, path)
    is_finetuned, run_dir = info.kind != "pretraining", info.run_dir
    config, summary = _read_summary(info)
    steps = option_text(config, "training.steps")
    step_text = f"step {checkpoint.step:,}" + (f" of {steps}" if steps else "")
    rows = {
        "Data": summary.pop("Data"),
        "Samples": f"{info.num_samples:,}" if info.num_samples is not None else "",
        "Weights": f"average of the weights at {step_text}" if use_ema else step_text,
        **summary,
        "Made with": _read_versions(run_dir),
    }
    if "score" in checkpoint.metadata:
        rows["Weights"] += ", selected by its score on the test set, so that this score is optimistic"
    deviations = get_option(config, "deviations")
    deviations = deviations if isinstance(deviations, list | tuple) else ()
    expected = ("Data", "Samples", *(() if is_finetuned else ("Masking",)), "Optimisation")
    metrics_step, metrics = _read_held_out_metrics(
        run_dir, checkpoint.step, _TEST_PREFIXES[use_ema] if is_finetuned else _HELD_OUT_PREFIX
    )
    dir_name = (run_dir.path if run_dir else path).resolve().name
    return WeightsProvenance(
        name=option_text(config, "name") or option_text(config, "method.name") or dir_name,
        title=option_text(config, "title"),
        details={title: text for title, text in rows.items() if text},
        deviations=[_ABSOLUTE_FOLDERS.sub("", str(deviation)) for deviation in deviations],
        held_out_metrics=metrics,
        metrics_step=metrics_step,
        is_ema=use_ema and not is_finetuned,
        is_finetuned=is_finetuned,
        evaluations=_read_evaluations(run_dir),
        missing_details=[title.lower() for title in expected if not rows[title]],
    )


def _read_summary(info: RunInfo) -> tuple[Mapping[str, Any], dict[str, str]]:
    """Return a run's config in the current format, and the rows of a card that describe it."""
    match info.kind:
        case "pretraining":
            config = migrate_pretraining(info.config)
            return config, summarise_pretraining(config)
        case "finetuning":
            config = migrate_finetuning(info.config)
            return config, summarise_finetuning(config, info.backbone.channels)
        case "segmentation":
            return info.config, summarise_segmentation(info.config)
        case "detection":
            return info.config, summarise_detection(info.config)


def _read_held_out_metrics(run_dir: RunDir | None, step: int, prefix: str) -> tuple[int, dict[str, float] | None]:
    """Return the last metrics with a prefix up to a step, and the step that they were computed at."""
    file = run_dir.metrics if run_dir else None
    if not file or not file.exists():
        return 0, None
    for row in iterate_rows_from_end(file):
        metrics = {key.removeprefix(prefix): row[key] for key in row if key.startswith(prefix)}
        if metrics and isinstance(row.get("step"), int) and row["step"] <= step:
            return row["step"], {name: value for name, value in metrics.items() if isinstance(value, float)}
    return 0, None


def _read_versions(run_dir: RunDir | None) -> str:
    environment = run_dir.read_environment() if run_dir else None
    paths = {"c2fmae": "c2fmae", "PyTorch": "torch.version", "timm": "timm"}
    versions = {name: option_text(environment, path) for name, path in paths.items()}
    return ", ".join(f"{name} {version}" for name, version in versions.items() if version)


def _read_evaluations(run_dir: RunDir | None) -> list[EvaluationRow]:
    """Return all evaluation results in a run directory. Raise a `UserError` if a file is unreadable."""
    files = sorted(run_dir.path.glob("evaluations/*/results.json")) if run_dir else []
    return [row for file in files for row in _read_evaluation_rows(file)]


def _read_evaluation_rows(file: Path) -> list[EvaluationRow]:
    results = read_json(file, max_bytes=_MAX_RESULT_BYTES, fix="Repeat the evaluation, or remove the file")
    try:
        return [
            EvaluationRow(
                evaluation=str(results["evaluation"]),
                source=strip_folders(str(results.get("source", ""))),
                metric=metric.label + (f" ({'; '.join(metric.notes)})" if metric.notes else ""),
                value=_format_with_interval(float(metric.value), metric.interval),
                count=f"{int(metric.count):,}",
                weights=str(results["weights"]),
                protocol=_ABSOLUTE_FOLDERS.sub("", " ".join(str(results.get("protocol", "")).split())),
            )
            for metric in select_headlines(map(Metric.from_json, results["metrics"]))
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file}: is not an evaluation result: {error}. Repeat the evaluation, or remove the file"
        ) from error


def _format_with_interval(value: float, interval: Any) -> str:
    return f"{value:.4g}" + (f" ({float(interval[0]):.4g} to {float(interval[1]):.4g})" if interval else "")
