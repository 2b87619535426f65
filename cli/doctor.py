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
    from c2fmae.core.metric_rows import CurvePair
    from c2fmae.core.run_dir import RunFolder


def doctor(
    run: Annotated[Path | None, typer.Argument(metavar="RUN", help="The folder of a run, to look into.")] = None,
    compare: Annotated[Path | None, typer.Option(metavar="OTHER", help="Another run, to compare it with.")] = None,
    replay: Annotated[int | None, typer.Option(metavar="STEP", help="A step to look into, as a skipped one.")] = None,
) -> None:
    """Report versions, devices and missing extras; or how a run stands, what a resume would do, how two differ.

    With --replay, take a step's batch once more, and name the samples with the largest losses.

    Ends with 1 if something that is required is not there, or something in the run is damaged.
    """
    if run is None and compare is not None:
        raise UserError("--compare: compares two runs, and there is one. Say: c2fmae doctor RUN --compare OTHER")
    if run is None:
        _examine_installation()
    elif replay is not None:
        _replay(run, replay)
    elif compare is None:
        _examine_run(run)
    else:
        _compare_runs(run, compare)


def _replay(run: Path, step: int) -> None:
    from c2fmae.recipes.config import read_recipe
    from c2fmae.replay import replay

    if not (run / "config.yaml").is_file():
        raise UserError(f"{run}: is no run's folder: it has no config.yaml")
    print(replay(read_recipe(str(run)), run, step))


def _examine_installation() -> None:
    from packaging.requirements import Requirement

    requirements = [Requirement(line) for line in metadata.requires("c2fmae") or []]
    required = [requirement for requirement in requirements if requirement.marker is None]
    print(f"{'c2fmae':16s}{metadata.version('c2fmae')}")
    print(f"{'python':16s}{platform.python_version()} on {platform.platform()}")
    for requirement in required:
        print(f"{requirement.name:16s}{_version(requirement.name) or 'missing'}")

    problems = [_lack(requirement.name, str(requirement.specifier)) for requirement in required]
    problems = [problem for problem in problems if problem]
    try:
        _print_devices()
    except Exception as error:  # a broken torch is what this command is there to find
        problems.append(f"torch cannot be imported: {error}")

    for extra in metadata.metadata("c2fmae").get_all("Provides-Extra") or []:
        wanted = [r for r in requirements if r.marker is not None and r.marker.evaluate({"extra": extra})]
        lacks = [_lack(r.name, str(r.specifier)) for r in wanted if r not in required]
        missing = ", ".join(lack for lack in lacks if lack)
        state = f"{missing}; get it by: pip install 'c2fmae[{extra}]'" if missing else "ready"
        print(f"{f'[{extra}]':16s}{state}")

    for problem in problems:
        print(f"problem: {problem}; mend it by: pip install --upgrade c2fmae", file=sys.stderr)
    if problems:
        raise typer.Exit(1)
    print("next: c2fmae view masks")


def _lack(name: str, specifier: str) -> str:
    """Say what is wrong with an installed version, or nothing."""
    from packaging.specifiers import SpecifierSet

    installed = _version(name)
    if installed is None:
        return f"{name} is missing"
    if not SpecifierSet(specifier).contains(installed, prereleases=True):
        return f"{name} {installed} is not {specifier}"
    return ""


def _version(name: str) -> str | None:
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


def _examine_run(path: Path) -> None:
    """Report on a run without changing anything in it."""
    from c2fmae.core.metric_rows import row_problems, skipped_steps, step_rows
    from c2fmae.core.spikes import SpikeWatch

    run, is_held = _open(path), _is_held(path)
    rows, state, problems = _rows(run), run.read_state() or {}, list[str]()
    end = max((row["step"] for row in step_rows(rows)), default=0)
    _print("run", str(path))
    _print("state", _describe_state(state, is_held, end))

    whole, damaged = _sort_checkpoints(run)
    for step in whole:
        _print("checkpoint", f"step {step} is whole")
    problems += damaged
    newest = max(whole, default=0)
    problems += [f"{run.metrics}: {problem}" for problem in row_problems(rows)]
    if end < newest:
        problems.append(f"{run.metrics}: ends at step {end}, before the newest checkpoint")

    skipped = skipped_steps(rows)
    _print("metrics", f"{end:,} steps, {f'{len(skipped):,} skipped: {_list(skipped)}' if skipped else 'none skipped'}")
    for spike in SpikeWatch().see_rows(rows):
        _print("spike", spike)

    is_finished = state.get("status") == "finished"
    if not is_held and not is_finished:
        again = f"; {_span(newest + 1, end)} taken again" if end > newest else ""
        beginning = "impossible: no checkpoint is whole" if damaged else f"from the beginning{again}"
        _print("resume", f"from step {newest:,}{again}" if newest else beginning)
        for change in _environment_changes(run):
            _print("", f"not as it was: {change}")
    for problem in problems:
        print(f"problem: {problem}", file=sys.stderr)
    if is_held:
        print(f"next: c2fmae doctor {quote(str(path))}  # later: it is at work")
    elif is_finished:
        print(f"next: c2fmae {'eval robustness' if _is_finetuned(path) else 'view reconstruct'} {quote(str(path))}")
    else:
        print(f"next: {_resume(run)}")
    if problems:
        raise typer.Exit(1)


def _open(path: Path) -> "RunFolder":
    from c2fmae.core.run_dir import RunFolder

    run = RunFolder(path)
    if not run.is_begun:
        raise UserError(f"{path}: is not a run: it has no {run.config_path.name}")
    return run


def _is_held(path: Path) -> bool:
    from c2fmae.core.locks import locked

    try:
        with locked(path, or_say="held"):
            return False
    except UserError:
        return True


def _rows(run: "RunFolder") -> list[dict[str, Any]]:
    from c2fmae.core.run_dir import read_rows

    rows = read_rows(run.metrics) if run.metrics.exists() else []
    if not all(isinstance(row.get("step"), int) for row in rows):
        raise UserError(f"{run.metrics}: has rows without a step, so it is no run's. Restore it")
    return rows


def _describe_state(state: dict[str, Any], is_held: bool, end: int) -> str:
    status, step = state.get("status", "running"), state.get("step", end)
    if is_held:
        return f"at work, after step {end:,}"
    if status == "running":
        return f"killed after step {end:,}: nobody works on it, and it could not say why it ended"
    if status == "saved-on-signal":
        return f"saved on a signal, after step {step:,}"
    return f"{status} after step {step:,}{': ' + state['why'] if 'why' in state else ''}"


def _sort_checkpoints(run: "RunFolder") -> tuple[list[int], list[str]]:
    """Read every checkpoint; return the steps of those that are whole, and a sentence on each of the others."""
    from c2fmae.core.checkpoint import checkpoints_in, load_checkpoint

    whole, damaged = [], []
    for path in checkpoints_in(run.checkpoints):
        try:
            whole.append(load_checkpoint(path).step)
        except UserError as error:
            if path.exists():  # a run at work may have removed it meanwhile
                damaged.append(str(error))
    return whole, damaged


def _environment_changes(run: "RunFolder") -> list[str]:
    from c2fmae.core.environment import environment, environment_changes

    old = _environment(run)
    return environment_changes(old, {**old, **environment()}) if old else []  # what only a run knows is as it was


def _environment(run: "RunFolder") -> dict[str, Any]:
    try:
        return dict(json.loads((run.path / "environment.json").read_bytes()))
    except (OSError, ValueError, TypeError):  # only told of, never needed: a resume does without it too
        return {}


def _resume(run: "RunFolder") -> str:
    """Return the command that goes on with a run, in as many processes as it had."""
    processes = _environment(run).get("world_size", 1)
    command = f"torchrun --nproc-per-node {processes} -m c2fmae_cli" if processes > 1 else "c2fmae"
    kind = "eval finetune" if _is_finetuned(run.path) else "pretrain"
    return f"{command} {kind} {quote(str(run.path))} --resume"


def _compare_runs(one: Path, other: Path) -> None:
    """Print how two runs differ in settings and metrics."""
    from c2fmae.core.config import read_yaml
    from c2fmae.core.environment import environment_changes
    from c2fmae.core.metric_rows import compare
    from c2fmae.core.resume import WITHOUT_EFFECT
    from c2fmae.core.run_dir import differences

    runs = [_open(one), _open(other)]
    configs = [read_yaml(run.config_path) for run in runs]
    settings = [change for change in differences(*configs) if not change.startswith(WITHOUT_EFFECT)]
    result = compare(*(_rows(run) for run in runs))
    for run, steps in zip(runs, result.steps, strict=True):
        _print("run", f"{run.path}: {steps:,} steps")
    for setting in settings or ["the same"]:
        _print("settings", setting)
    environments = [_environment(run) for run in runs]
    for change in environment_changes(*environments) if all(environments) else []:
        _print("environment", change)

    first = min((curve.first for curve in result.curves if curve.first is not None), default=None)
    if result.same_until:
        _print("metrics", f"identical to the last bit up to step {result.same_until:,}")
    if first is not None:
        names = [curve.name for curve in result.curves if curve.first == first]
        _print("metrics", f"differ first at step {first:,}: {', '.join(names)}")
    for run, unmatched in zip(runs, result.unmatched, strict=True):
        if unmatched:
            _print("metrics", f"only in {run.path}, or at other steps: {', '.join(unmatched)}")
    shown = [curve for curve in result.curves if curve.first is not None or curve.name.endswith("loss")]
    if shown:
        _print_curves(shown)
    print(f"next: c2fmae doctor {quote(str(one))}")


def _print_curves(curves: "list[CurvePair]") -> None:
    print(f"\n{'':24s}{'differ from':>14s}  {'at most, relatively':26s}mean over the last tenth")
    for curve in curves:
        first, apart = "never", ""
        if curve.first is not None:
            first = f"step {curve.first:,}"
            much = f"{curve.largest:.2g}" if math.isfinite(curve.largest) else "one is none"
            apart = f"{much} at step {curve.at:,}"
        print(f"{curve.name:24s}{first:>14s}  {apart:26s}{curve.means[0]:.6g} → {curve.means[1]:.6g}")
    print()


def _print(word: str, text: str) -> None:
    print(f"{word:16s}{text}")


def _span(first: int, last: int) -> str:
    return f"step {first:,} is" if first == last else f"steps {first:,} to {last:,} are"


def _list(steps: list[int]) -> str:
    shown = ", ".join(f"{step:,}" for step in steps[:10])
    return f"{shown} and {len(steps) - 10:,} more" if len(steps) > 10 else shown


def _is_finetuned(path: Path) -> bool:
    from c2fmae.eval.classification.config import is_finetuned

    return is_finetuned(path)
