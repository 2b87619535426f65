"""What is known of where weights are from: for the card beside an export, which says no more than that."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from c2fmae.core.errors import UserError
from c2fmae.core.metric_rows import read_rows
from c2fmae.core.run_dir import find_checkpoint
from c2fmae.core.run_info import RunInfo, is_run_or_checkpoint
from c2fmae.exports.config_text import ConfigText, strip_folders, summarise_finetuning, summarise_pretraining
from c2fmae.models.backbones.timm_reader import TIMM_PREFIX

_HELD_OUT_PREFIX = "held_out/"
_ABSOLUTE_FOLDERS = re.compile(r"(?<![\w:/])/(?:[^\s/,]+/)+")  # of a place on the disk, in a sentence


@dataclass(frozen=True, kw_only=True)
class EvaluationRow:
    """One number of an evaluation that was made of the run."""

    evaluation: str
    source: str
    metric: str
    value: str
    count: str
    weights: str
    """A digest of what it is about."""
    protocol: str


@dataclass(frozen=True, kw_only=True)
class WeightsProvenance:
    """Where weights are from. Places on the disk are not in it: a card travels."""

    name: str
    title: str = ""
    details: Mapping[str, str]
    """What is known, in words, by what it is about."""
    deviations: Sequence[str] = ()
    held_out_metrics: Mapping[str, float] | None = None
    """The last that were taken on what was held out; None where there are none."""
    metrics_step: int = 0
    is_average: bool = False
    """Whether the weights are an average, and the losses not of it."""
    is_finetuned: bool = False
    """Whether it was fine-tuned, and the losses are scores of classes."""
    evaluations: Sequence[EvaluationRow] = ()
    missing_details: Sequence[str] = ()


def read_provenance(source: str, *, step: int | None = None, average: bool = False) -> WeightsProvenance:
    """Return what a source says of itself: much, if it is a run; nothing but its name, if it is a file of others."""
    path = Path(source)
    if not source.startswith(TIMM_PREFIX) and is_run_or_checkpoint(path):
        return _read_run_provenance(path, step, average)
    name = source.removeprefix(TIMM_PREFIX).partition("@")[0] if source.startswith(TIMM_PREFIX) else path.resolve().name
    return WeightsProvenance(
        name=name,
        details={"Source": f"{strip_folders(source)}, which holds weights and does not tell how they were trained"},
        missing_details=["data", "steps", "settings of the training"],
    )


def _read_run_provenance(path: Path, step: int | None, average: bool) -> WeightsProvenance:
    checkpoint = find_checkpoint(path, step)
    info = RunInfo.from_checkpoint(checkpoint, path)
    config, run = info.metadata.get("config"), info.run_dir.path if info.run_dir else None
    is_tuned = info.kind == "finetuning"
    config_text, config_mapping = ConfigText(config), config if isinstance(config, Mapping) else {}
    samples, steps = info.num_samples, config_text.get("training.steps")
    step_text = f"step {checkpoint.step:,}" + (f" of {steps}" if steps else "")
    summary = (
        summarise_finetuning(config_text, ConfigText({"backbone": info.backbone.model_dump(mode="json")}))
        if is_tuned
        else summarise_pretraining(config_text)
    )
    facts = {
        "Data": summary.pop("Data"),
        "Samples": f"{samples:,}" if isinstance(samples, int) else "",
        "Weights": f"the average of the weights at {step_text}" if average else step_text,
        **summary,
        "Made with": _read_versions(run),
    }
    if "score" in checkpoint.metadata:
        facts["Weights"] += ", which did best on what it was tried on: that flatters them there"
    expected = ("Data", "Samples", *(() if is_tuned else ("Masking",)), "Optimisation")
    losses_at, losses = _read_held_out_metrics(
        run, checkpoint.step, _score_prefix(average) if is_tuned else _HELD_OUT_PREFIX
    )
    return WeightsProvenance(
        name=config_text.get("name") or config_text.get("method.name") or (run or path).resolve().name,
        title=config_text.get("title"),
        details={about: text for about, text in facts.items() if text},
        deviations=[_ABSOLUTE_FOLDERS.sub("", str(each)) for each in config_mapping.get("deviations") or ()],
        held_out_metrics=losses,
        metrics_step=losses_at,
        is_average=average and not is_tuned,
        is_finetuned=is_tuned,
        evaluations=_read_evaluations(run),
        missing_details=[about.lower() for about in expected if not facts[about]],
    )


def _score_prefix(average: bool) -> str:
    """Return what stands before the scores of a fine-tuning's weights, or of their average."""
    return "average/" if average else "test/"


def _read_held_out_metrics(run: Path | None, step: int, prefix: str) -> tuple[int, dict[str, float] | None]:
    file = run / "metrics.jsonl" if run else None
    if not file or not file.exists():
        return 0, None
    for row in reversed(read_rows(file)):
        losses = {key.removeprefix(prefix): row[key] for key in row if key.startswith(prefix)}
        if losses and isinstance(row.get("step"), int) and row["step"] <= step:
            return row["step"], {name: value for name, value in losses.items() if isinstance(value, float)}
    return 0, None


def _read_versions(run: Path | None) -> str:
    try:
        environment = ConfigText(json.loads((run / "environment.json").read_bytes())) if run else ConfigText(None)
    except (OSError, ValueError):
        return ""
    known = {
        "c2fmae": environment.get("c2fmae"),
        "PyTorch": environment.get("torch.version"),
        "timm": environment.get("timm"),
    }
    return ", ".join(f"{name} {version}" for name, version in known.items() if version)


def _read_evaluations(run: Path | None) -> list[EvaluationRow]:
    """Return all results that lie in a run's folder; one that cannot be read is an error, since it would be missed."""
    files = sorted(run.glob("evaluations/*/results.json")) if run else []
    return [row for file in files for row in _read_evaluation_rows(file)]


def _read_evaluation_rows(file: Path) -> list[EvaluationRow]:
    try:
        results = json.loads(file.read_bytes())
        return [
            EvaluationRow(
                evaluation=str(results["evaluation"]),
                source=strip_folders(str(results.get("source", ""))),
                metric=str(metric["name"]) + (f" ({note})" if (note := metric.get("note")) else ""),
                value=_format_with_interval(float(metric["value"]), metric.get("interval")),
                count=f"{int(metric['count']):,}",
                weights=str(results["weights"]),
                protocol=_ABSOLUTE_FOLDERS.sub("", " ".join(str(results.get("protocol", "")).split())),
            )
            for metric in results["metrics"]
        ]
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{file}: is not an evaluation's result: {error}. Repeat the evaluation, or remove it"
        ) from error


def _format_with_interval(value: float, interval: Any) -> str:
    return f"{value:.4g}" + (f" ({float(interval[0]):.4g} to {float(interval[1]):.4g})" if interval else "")
