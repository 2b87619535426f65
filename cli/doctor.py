"""`c2fmae doctor`: what is installed here and what is missing; how a run stands, and how it differs from another."""

import json
import math
import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from c2fmae.core.errors import UserError

if TYPE_CHECKING:
    from c2fmae.core.metric_rows import CurveComparison
    from c2fmae.core.run_dir import RunDir


def doctor(
    run_dir: Annotated[Path | None, typer.Argument(metavar="RUN", help="The folder of a run, to look into.")] = None,
    compare: Annotated[Path | None, typer.Option(metavar="OTHER", help="Another run, to compare it with.")] = None,
    replay: Annotated[int | None, typer.Option(metavar="STEP", help="A step to look into, as a skipped one.")] = None,
) -> None:
    """Report versions, devices and missing extras; or how a run stands, what a resume would do, how two differ.

    With --replay, take a step's batch once more, and name the samples with the largest losses.

    Ends with 1 if something that is required is not there, or something in the run is damaged.
    """
    if run_dir is None and compare is not None:
        raise UserError("--compare: compares two runs, and there is one. Say: c2fmae doctor RUN --compare OTHER")
    if run_dir is None:
        _report_installation()
    elif replay is not None:
        _print_replay(run_dir, replay)
    elif compare is None:
        _report_run(run_dir)
    else:
        _compare_runs(run_dir, compare)


def _print_replay(run_dir: Path, step: int) -> None:
    from c2fmae.recipes.config import load_recipe
    from c2fmae.replay import replay_step

    if not (run_dir / "config.yaml").is_file():
        raise UserError(f"{run_dir}: is no run's folder: it has no config.yaml")
    print(replay_step(load_recipe(str(run_dir)), run_dir, step))


def _report_installation() -> None:
    from packaging.requirements import Requirement

    requirements = [Requirement(line) for line in metadata.requires("c2fmae") or []]
    required = [requirement for requirement in requirements if requirement.marker is None]
    print(f"{'c2fmae':16s}{metadata.version('c2fmae')}")
    print(f"{'python':16s}{platform.python_version()} on {platform.platform()}")
    for requirement in required:
        print(f"{requirement.name:16s}{_installed_version(requirement.name) or 'missing'}")

    problems = [_requirement_problem(requirement.name, str(requirement.specifier)) for requirement in required]
    problems = [problem for problem in problems if problem]
    try:
        _print_devices()
    except Exception as error:  # a broken torch is what this command is there to find
        problems.append(f"torch cannot be imported: {error}")

    for extra in metadata.metadata("c2fmae").get_all("Provides-Extra") or []:
        wanted = [r for r in requirements if r.marker is not None and r.marker.evaluate({"extra": extra})]
        problems_of_extra = [_requirement_problem(r.name, str(r.specifier)) for r in wanted if r not in required]
        missing = ", ".join(lack for lack in problems_of_extra if lack)
        state = f"{missing}; get it by: pip install 'c2fmae[{extra}]'" if missing else "ready"
        print(f"{f'[{extra}]':16s}{state}")

    for problem in problems:
        print(f"problem: {problem}; mend it by: pip install --upgrade c2fmae", file=sys.stderr)
    if problems:
        raise typer.Exit(1)
    print("next: c2fmae view masks")


def _requirement_problem(name: str, specifier: str) -> str:
    """Say what is wrong with an installed version, or nothing."""
    from packaging.specifiers import SpecifierSet

    installed = _installed_version(name)
    if installed is None:
        return f"{name} is missing"
    if not SpecifierSet(specifier).contains(installed, prereleases=True):
        return f"{name} {installed} is not {specifier}"
    return ""


def _installed_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _print_devices() -> None:
    import torch

    print(f"{'cpu':16s}{os.cpu_count()} cores, {torch.get_num_threads()} threads used by torch")
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        print(f"{f'cuda:{index}':16s}{properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    if not torch.cuda.is_available():
        built = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is built without CUDA"
        print(f"{'cuda':16s}none ({built})")


def _report_run(run_path: Path) -> None:
    """Report on a run without changing anything in it."""
    from c2fmae.core.metric_rows import describe_row_problems, list_skipped_steps, select_step_rows
    from c2fmae.core.spikes import SpikeDetector

    run_dir, is_locked = _open_run_dir(run_path), _is_locked(run_path)
    rows, state, problems = _read_step_rows(run_dir), run_dir.read_state() or {}, list[str]()
    last_step = max((row["step"] for row in select_step_rows(rows)), default=0)
    _print_row("run", str(run_path))
    _print_row("state", _describe_state(state, is_locked, last_step))

    valid, corrupted = _check_checkpoints(run_dir)
    for step in valid:
        _print_row("checkpoint", f"step {step} is whole")
    problems += corrupted
    newest = max(valid, default=0)
    problems += [f"{run_dir.metrics}: {problem}" for problem in describe_row_problems(rows)]
    if last_step < newest:
        problems.append(f"{run_dir.metrics}: ends at step {last_step}, before the newest checkpoint")

    skipped = list_skipped_steps(rows)
    _print_row(
        "metrics",
        f"{last_step:,} steps, {f'{len(skipped):,} skipped: {_format_steps(skipped)}' if skipped else 'none skipped'}",
    )
    for spike in SpikeDetector().add_rows(rows):
        _print_row("spike", spike)

    is_finished = state.get("status") == "finished"
    if not is_locked and not is_finished:
        repeated = f"; {_format_step_range(newest + 1, last_step)} taken again" if last_step > newest else ""
        beginning = "impossible: no checkpoint is whole" if corrupted else f"from the beginning{repeated}"
        _print_row("resume", f"from step {newest:,}{repeated}" if newest else beginning)
        for change in _describe_environment_changes(run_dir):
            _print_row("", f"not as it was: {change}")
    for problem in problems:
        print(f"problem: {problem}", file=sys.stderr)
    if is_locked:
        print(f"next: c2fmae doctor {quote(str(run_path))}  # later: it is at work")
    elif is_finished:
        print(
            f"next: c2fmae {'eval robustness' if _is_finetuned(run_path) else 'view reconstruct'} "
            f"{quote(str(run_path))}"
        )
    else:
        print(f"next: {_resume_command(run_dir)}")
    if problems:
        raise typer.Exit(1)


def _open_run_dir(path: Path) -> "RunDir":
    from c2fmae.core.run_dir import RunDir

    run = RunDir(path)
    if not run.is_started:
        raise UserError(f"{path}: is not a run: it has no {run.config_path.name}")
    return run


def _is_locked(path: Path) -> bool:
    from c2fmae.core.locks import lock_dir

    try:
        with lock_dir(path, busy_message="held"):
            return False
    except UserError:
        return True


def _read_step_rows(run_dir: "RunDir") -> list[dict[str, Any]]:
    from c2fmae.core.metric_rows import read_rows

    rows = read_rows(run_dir.metrics) if run_dir.metrics.exists() else []
    if not all(isinstance(row.get("step"), int) for row in rows):
        raise UserError(f"{run_dir.metrics}: has rows without a step, so it is no run's. Restore it")
    return rows


def _describe_state(state: dict[str, Any], is_locked: bool, last_step: int) -> str:
    status, step = state.get("status", "running"), state.get("step", last_step)
    if is_locked:
        return f"at work, after step {last_step:,}"
    if status == "running":
        return f"killed after step {last_step:,}: nobody works on it, and it could not say why it ended"
    if status == "saved-on-signal":
        return f"saved on a signal, after step {step:,}"
    return f"{status} after step {step:,}{': ' + state['why'] if 'why' in state else ''}"


def _check_checkpoints(run_dir: "RunDir") -> tuple[list[int], list[str]]:
    """Read every checkpoint; return the steps of those that are whole, and a sentence on each of the others."""
    from c2fmae.core.checkpoint import list_checkpoints, load_checkpoint

    valid, corrupted = [], []
    for path in list_checkpoints(run_dir.checkpoints):
        try:
            valid.append(load_checkpoint(path).step)
        except UserError as error:
            if path.exists():  # a run at work may have removed it meanwhile
                corrupted.append(str(error))
    return valid, corrupted


def _describe_environment_changes(run_dir: "RunDir") -> list[str]:
    from c2fmae.core.environment import collect_environment, describe_environment_changes

    old = _read_environment(run_dir)
    return (
        describe_environment_changes(old, {**old, **collect_environment()}) if old else []
    )  # what only a run knows is as it was


def _read_environment(run_dir: "RunDir") -> dict[str, Any]:
    try:
        return dict(json.loads((run_dir.path / "environment.json").read_bytes()))
    except (OSError, ValueError, TypeError):  # only told of, never needed: a resume does without it too
        return {}


def _resume_command(run_dir: "RunDir") -> str:
    """Return the command that goes on with a run, in as many processes as it had."""
    processes = _read_environment(run_dir).get("world_size", 1)
    command = f"torchrun --nproc-per-node {processes} -m c2fmae_cli" if processes > 1 else "c2fmae"
    kind = "eval finetune" if _is_finetuned(run_dir.path) else "pretrain"
    return f"{command} {kind} {quote(str(run_dir.path))} --resume"


def _compare_runs(run_path: Path, other_path: Path) -> None:
    """Print how two runs differ in settings and metrics."""
    from c2fmae.core.config import read_yaml
    from c2fmae.core.config_diff import config_differences
    from c2fmae.core.environment import describe_environment_changes
    from c2fmae.core.metric_rows import compare_metrics
    from c2fmae.eval.classification.config import FinetuneConfig
    from c2fmae.recipes.config import RecipeConfig

    runs = [_open_run_dir(run_path), _open_run_dir(other_path)]
    config_class = FinetuneConfig if _is_finetuned(run_path) else RecipeConfig
    configs = [config_class.migrate(read_yaml(run.config_path)) for run in runs]
    changes = config_differences(*configs)
    settings = [change for change in changes if not config_class.is_resume_safe(change.partition(":")[0])]
    result = compare_metrics(*(_read_step_rows(run) for run in runs))
    for run, steps in zip(runs, result.num_steps, strict=True):
        _print_row("run", f"{run.path}: {steps:,} steps")
    for setting in settings or ["the same"]:
        _print_row("settings", setting)
    environments = [_read_environment(run) for run in runs]
    for change in describe_environment_changes(*environments) if all(environments) else []:
        _print_row("environment", change)

    first = min((curve.first_difference for curve in result.curves if curve.first_difference is not None), default=None)
    if result.identical_until:
        _print_row("metrics", f"identical to the last bit up to step {result.identical_until:,}")
    if first is not None:
        names = [curve.name for curve in result.curves if curve.first_difference == first]
        _print_row("metrics", f"differ first at step {first:,}: {', '.join(names)}")
    for run, unmatched in zip(runs, result.unmatched, strict=True):
        if unmatched:
            _print_row("metrics", f"only in {run.path}, or at other steps: {', '.join(unmatched)}")
    shown = [curve for curve in result.curves if curve.first_difference is not None or curve.name.endswith("loss")]
    if shown:
        _print_curves(shown)
    print(f"next: c2fmae doctor {quote(str(run_path))}")


def _print_curves(curves: "list[CurveComparison]") -> None:
    print(f"\n{'':24s}{'differ from':>14s}  {'at most, relatively':26s}mean over the last tenth")
    for curve in curves:
        first, difference = "never", ""
        if curve.first_difference is not None:
            first = f"step {curve.first_difference:,}"
            largest = f"{curve.largest_difference:.2g}" if math.isfinite(curve.largest_difference) else "one is none"
            difference = f"{largest} at step {curve.largest_difference_step:,}"
        print(f"{curve.name:24s}{first:>14s}  {difference:26s}{curve.final_means[0]:.6g} → {curve.final_means[1]:.6g}")
    print()


def _print_row(heading: str, text: str) -> None:
    print(f"{heading:16s}{text}")


def _format_step_range(first: int, last: int) -> str:
    return f"step {first:,} is" if first == last else f"steps {first:,} to {last:,} are"


def _format_steps(steps: list[int]) -> str:
    shown = ", ".join(f"{step:,}" for step in steps[:10])
    return f"{shown} and {len(steps) - 10:,} more" if len(steps) > 10 else shown


def _is_finetuned(path: Path) -> bool:
    from c2fmae.eval.classification.config import is_finetuned

    return is_finetuned(path)
