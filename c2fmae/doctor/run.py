"""The state of a run: its checkpoints, its metrics, and what a resume would do. Nothing in the run is changed."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import Any

from c2fmae.core.checkpoint import Checkpoint, list_checkpoints, load_checkpoint
from c2fmae.core.environment import collect_environment, describe_environment_changes
from c2fmae.core.errors import UserError
from c2fmae.core.experiment_config import RUN_COMMANDS
from c2fmae.core.locks import lock_dir
from c2fmae.core.metric_rows import describe_row_problems, list_skipped_steps, read_rows, select_step_rows
from c2fmae.core.resume import check_finite, check_same_run
from c2fmae.core.run_dir import RunDir
from c2fmae.core.run_info import read_run_info
from c2fmae.core.spikes import SpikeDetector
from c2fmae.core.text import format_count
from c2fmae.doctor.diagnosis import Diagnosis
from c2fmae.doctor.run_config import list_missing_data, read_run_config


def find_run(path: Path) -> RunDir:
    """Return the run directory at a path; raise if there is none."""
    run_dir = RunDir(path)
    if not run_dir.is_started:
        raise UserError(
            f"{path}: is not a run directory, it has no {run_dir.config_path.name}. Use the directory of a run"
        )
    return run_dir


def diagnose_run(path: Path) -> Diagnosis:
    """Report the state of a run: config, checkpoints, skipped steps, loss spikes, and where a resume would start."""
    run_dir = find_run(path)
    is_locked, rows, state = _is_locked(path), read_step_rows(run_dir), run_dir.read_state() or {}
    last_step = max((row["step"] for row in select_step_rows(rows)), default=0)
    is_finished = state.get("status") == "finished"
    config, problems = read_run_config(run_dir)
    missing_data = list_missing_data(config) if config is not None else {}
    intact, checkpoint_problems = _check_checkpoints(run_dir)
    newest = intact[-1].step if intact else 0
    changes: list[str] = []
    if config is not None and intact and not is_finished:
        try:
            changes = check_same_run(run_dir, intact[-1], config, run_dir.read_environment(), known_changes=())
        except UserError as error:  # it is of another run
            problems.append(str(error))
    has_to_be_repaired = bool(problems)
    problems += checkpoint_problems
    if not is_finished:
        problems += [f"{run_dir.config_path}: {key}: {message}" for key, message in missing_data.items()]
    problems += [f"{run_dir.metrics}: {problem}" for problem in describe_row_problems(rows)]
    if last_step < newest:
        problems.append(
            f"{run_dir.metrics}: ends at step {last_step}, before the checkpoint of step {newest}. "
            "Restore it, or accept a gap in the curves"
        )
    findings = [
        ("run", str(path)),
        ("state", _describe_state(state, is_locked, last_step)),
        *(("checkpoint", f"step {checkpoint.step}, intact") for checkpoint in intact),
        ("metrics", f"{format_count(last_step, 'step')}, {_describe_skipped(list_skipped_steps(rows))}"),
        *(("spike", spike) for spike in SpikeDetector().add_rows(rows)),
    ]
    has_lost_checkpoints = not intact and (bool(checkpoint_problems) or is_finished)
    if not is_locked and not is_finished:
        impossible = "impossible: no checkpoint is intact"
        findings.append(("resume", impossible if has_lost_checkpoints else _describe_resume(newest, last_step)))
        findings += [("", f"changed: {change}") for change in (*changes, *_describe_environment_changes(run_dir))]
    elif is_finished:
        findings += [("data", f"{key}: {message}") for key, message in missing_data.items()]
    if is_locked:
        command = f"c2fmae doctor {quote(str(path))}  # the run is in progress"
    elif has_to_be_repaired:
        command = f"c2fmae doctor {quote(str(path))}  # after the fixes"
    else:
        command = next_command(
            run_dir,
            is_finished=is_finished and not has_lost_checkpoints,
            moved=tuple(missing_data),
            has_changes=bool(changes),
            has_lost_checkpoints=has_lost_checkpoints,
        )
    return Diagnosis(findings, problems, command, [])


def next_command(
    run_dir: RunDir,
    *,
    is_finished: bool,
    moved: Sequence[str] = (),
    has_changes: bool = False,
    has_lost_checkpoints: bool = False,
) -> str:
    """Return a command for a finished run, or the one that resumes an unfinished run in as many processes as it had.

    `moved` lists the keys of data that is not at its path. If no checkpoint is intact, the command starts again.
    """
    path, info = quote(str(run_dir.path)), read_run_info(run_dir.path)
    kind = info.kind
    if is_finished and kind == "finetuning":
        return f"c2fmae eval robustness {path} --custom NAME=DIR"
    if is_finished and kind in ("segmentation", "detection"):
        return f"c2fmae predict {path} IMAGES --out DIR"
    if is_finished and not info.predicts_patches:
        return f"c2fmae eval knn {path}"
    if is_finished:
        return f"c2fmae view reconstruct {path}{' --data DATA' if moved else ''}"
    num_processes = run_dir.read_environment().get("world_size", 1)
    program = f"torchrun --nproc-per-node {num_processes} -m c2fmae_cli" if num_processes > 1 else "c2fmae"
    options = ["--resume", *["--accept-changes"] * bool(has_changes or moved), *(f"--set {key}=DATA" for key in moved)]
    command = f"{program} {RUN_COMMANDS[kind]} {path} {' '.join(options)}"
    if has_lost_checkpoints and run_dir.checkpoints.exists():
        damaged = quote(f"{run_dir.checkpoints}.damaged")
        return f"mv {quote(str(run_dir.checkpoints))} {damaged} && {command}  # starts again"
    return command


def read_step_rows(run_dir: RunDir) -> list[dict[str, Any]]:
    """Return the rows of the metrics of a run; raise if a row has no step."""
    rows = read_rows(run_dir.metrics) if run_dir.metrics.exists() else []
    if not all(isinstance(row.get("step"), int) for row in rows):
        raise UserError(f"{run_dir.metrics}: has rows without a step, so it is not the metrics of a run. Restore it")
    return rows


def _is_locked(path: Path) -> bool:
    try:
        with lock_dir(path, busy_message="locked"):
            return False
    except UserError:
        return True


def _check_checkpoints(run_dir: RunDir) -> tuple[list[Checkpoint], list[str]]:
    """Read all checkpoints; return those that can be resumed, without their tensors, and the problems of the others."""
    intact, problems = [], []
    for path in list_checkpoints(run_dir.checkpoints):
        try:
            checkpoint = load_checkpoint(path)
            check_finite(path, checkpoint)
            intact.append(replace(checkpoint, tensors={}))
        except UserError as error:
            if path.exists():  # a run in progress may have removed it meanwhile
                problems.append(str(error))
    return intact, problems


def _describe_state(state: dict[str, Any], is_locked: bool, last_step: int) -> str:
    status, step = state.get("status", "running"), state.get("step", last_step)
    if is_locked:
        return f"running, after step {last_step:,}"
    if status == "running":
        return f"killed after step {last_step:,}: no process runs it, and no reason was recorded"
    if status == "saved-on-signal":
        return f"saved on a signal, after step {step:,}"
    return f"{status} after step {step:,}{': ' + state['why'] if 'why' in state else ''}"


def _describe_resume(newest_checkpoint: int, last_step: int) -> str:
    start = f"from step {newest_checkpoint:,}" if newest_checkpoint else "from the beginning"
    first = newest_checkpoint + 1
    if last_step < first:
        return start
    return (
        f"{start}; {f'step {first:,} is' if first == last_step else f'steps {first:,} to {last_step:,} are'} repeated"
    )


def _describe_environment_changes(run_dir: RunDir) -> list[str]:
    old = run_dir.read_environment()
    return describe_environment_changes(old, {**old, **collect_environment()}) if old else []


def _describe_skipped(steps: list[int]) -> str:
    shown = ", ".join(f"{step:,}" for step in steps[:10])
    if len(steps) > 10:
        shown = f"{shown} and {len(steps) - 10:,} more"
    return f"{len(steps):,} skipped: {shown}" if steps else "none skipped"
