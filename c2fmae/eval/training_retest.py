"""Tests of finished runs by another protocol, without training."""

from collections.abc import Callable
from pathlib import Path
from typing import cast

from c2fmae.core.distributed import World
from c2fmae.core.errors import UserError
from c2fmae.core.labels import ClassInfo
from c2fmae.core.run_dir import RunDir
from c2fmae.eval.results import EvaluationResult


def check_finished(run_dir: Path, command: str) -> None:
    """Raise a `UserError` for a run that has not ended with its last step."""
    state = RunDir(run_dir).read_state() or {}
    if state.get("status") != "finished":
        raise UserError(f"{run_dir}: is not finished. Resume it first: c2fmae eval {command} {run_dir} --resume")


def describe_weights(run_dir: Path, step: int | None, *, use_ema: bool) -> str:
    """Return the weights of a run in words."""
    return f"{run_dir}{f', step {step:,}' if step is not None else ''}{', averaged weights' if use_ema else ''}"


def check_same_classes(split: str, name: str, class_names: tuple[str, ...], classes: tuple[ClassInfo, ...]) -> None:
    """Raise a `UserError` if the classes of a set are not those of a trained model."""
    if class_names != tuple(entry.name for entry in classes):
        raise UserError(
            f"{split}: {name} has other classes than this run was trained on. Use a set of the original classes"
        )


def find_or_test(
    world: World, find_result: Callable[[], EvaluationResult | None], test: Callable[[], EvaluationResult | None]
) -> EvaluationResult:
    """Return the stored result, or that of a test; the same on all processes, which must all call this.

    Only the main process looks for a stored result. All processes test, and the main process returns the result.
    """
    stored = world.broadcast_object(find_result() if world.is_main else None)
    return cast(EvaluationResult, stored or world.broadcast_object(test()))
