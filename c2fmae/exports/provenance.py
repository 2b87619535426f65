"""What is known of where weights are from: for the card beside an export, which says no more than that."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from c2fmae.core.errors import UserError
from c2fmae.core.run_dir import find_checkpoint, read_rows
from c2fmae.exports.config_text import Said, file_name, pretraining_facts, tuning_facts
from c2fmae.models.backbones.run_reader import is_run
from c2fmae.models.backbones.timm_reader import TIMM

_HELD_OUT = "held_out/"
_FOLDERS = re.compile(r"(?<![\w:/])/(?:[^\s/,]+/)+")  # of a place on the disk, in a sentence


@dataclass(frozen=True, kw_only=True)
class Evaluated:
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
class Origin:
    """Where weights are from. Places on the disk are not in it: a card travels."""

    name: str
    title: str = ""
    facts: Mapping[str, str]
    """What is known, in words, by what it is about."""
    deviations: Sequence[str] = ()
    losses: Mapping[str, float] | None = None
    """The last that were taken on what was held out; None where there are none."""
    losses_at: int = 0
    is_average: bool = False
    """Whether the weights are an average, and the losses not of it."""
    is_tuned: bool = False
    """Whether it was fine-tuned, and the losses are scores of classes."""
    evaluations: Sequence[Evaluated] = ()
    unknown: Sequence[str] = ()


def origin_of(source: str, *, step: int | None = None, average: bool = False) -> Origin:
    """Return what a source says of itself: much, if it is a run; nothing but its name, if it is a file of others."""
    path = Path(source)
    if not source.startswith(TIMM) and is_run(path):
        return _of_run(path, step, average)
    name = source.removeprefix(TIMM).partition("@")[0] if source.startswith(TIMM) else path.resolve().name
    return Origin(
        name=name,
        facts={"Source": f"{file_name(source)}, which holds weights and does not tell how they were trained"},
        unknown=["data", "steps", "settings of the training"],
    )


def _of_run(path: Path, step: int | None, average: bool) -> Origin:
    checkpoint = find_checkpoint(path, step)
    config, run = checkpoint.facts.get("config"), _run_of(path)
    is_tuned = "classifier" in checkpoint.facts
    said, told = Said(config), config if isinstance(config, Mapping) else {}
    samples, steps = checkpoint.facts.get("samples"), said("training.steps")
    at = f"step {checkpoint.step:,}" + (f" of {steps}" if steps else "")
    own = tuning_facts(said, Said(checkpoint.facts["classifier"])) if is_tuned else pretraining_facts(said)
    facts = {
        "Data": own.pop("Data"),
        "Samples": f"{samples:,}" if isinstance(samples, int) else "",
        "Weights": f"the average of the weights at {at}" if average else at,
        **own,
        "Made with": _versions(run),
    }
    if "score" in checkpoint.facts:
        facts["Weights"] += ", which did best on what it was tried on: that flatters them there"
    expected = ("Data", "Samples", *(() if is_tuned else ("Masking",)), "Optimisation")
    losses_at, losses = _held_out(run, checkpoint.step, _tests(average) if is_tuned else _HELD_OUT)
    return Origin(
        name=said("name") or said("method.name") or (run or path).resolve().name,
        title=said("title"),
        facts={about: text for about, text in facts.items() if text},
        deviations=[_FOLDERS.sub("", str(each)) for each in told.get("deviations") or ()],
        losses=losses,
        losses_at=losses_at,
        is_average=average and not is_tuned,
        is_tuned=is_tuned,
        evaluations=_evaluations(run),
        unknown=[about.lower() for about in expected if not facts[about]],
    )


def _run_of(path: Path) -> Path | None:
    """Return the run's folder that a source is, or lies in."""
    folders = (path, path.resolve().parent, path.resolve().parent.parent)
    return next((folder for folder in folders if (folder / "config.yaml").exists()), None)


def _tests(average: bool) -> str:
    """Return what stands before the scores of a fine-tuning's weights, or of their average."""
    return "average/" if average else "test/"


def _held_out(run: Path | None, step: int, prefix: str) -> tuple[int, dict[str, float] | None]:
    file = run / "metrics.jsonl" if run else None
    if not file or not file.exists():
        return 0, None
    for row in reversed(read_rows(file)):
        losses = {key.removeprefix(prefix): row[key] for key in row if key.startswith(prefix)}
        if losses and isinstance(row.get("step"), int) and row["step"] <= step:
            return row["step"], {name: value for name, value in losses.items() if isinstance(value, float)}
    return 0, None


def _versions(run: Path | None) -> str:
    try:
        said = Said(json.loads((run / "environment.json").read_bytes())) if run else Said(None)
    except (OSError, ValueError):
        return ""
    known = {"c2fmae": said("c2fmae"), "PyTorch": said("torch.version"), "timm": said("timm")}
    return ", ".join(f"{name} {version}" for name, version in known.items() if version)


def _evaluations(run: Path | None) -> list[Evaluated]:
    """Return all results that lie in a run's folder; one that cannot be read is an error, since it would be missed."""
    files = sorted(run.glob("evaluations/*/results.json")) if run else []
    return [row for file in files for row in _results(file)]


def _results(file: Path) -> list[Evaluated]:
    try:
        found = json.loads(file.read_bytes())
        return [
            Evaluated(
                evaluation=str(found["evaluation"]),
                source=file_name(str(found.get("source", ""))),
                metric=str(metric["name"]) + (f" ({note})" if (note := metric.get("note")) else ""),
                value=_with_interval(float(metric["value"]), metric.get("interval")),
                count=f"{int(metric['count']):,}",
                weights=str(found["weights"]),
                protocol=_FOLDERS.sub("", " ".join(str(found.get("protocol", "")).split())),
            )
            for metric in found["metrics"]
        ]
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{file}: is not an evaluation's result: {error}. Repeat the evaluation, or remove it"
        ) from error


def _with_interval(value: float, interval: Any) -> str:
    return f"{value:.4g}" + (f" ({float(interval[0]):.4g} to {float(interval[1]):.4g})" if interval else "")
