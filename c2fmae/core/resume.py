"""Start of a new run in a run directory, or continuation of the run that it contains."""

import logging
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from c2fmae.core.checkpoint import Checkpoint, list_checkpoints, load_checkpoint, load_newest_checkpoint, step_name
from c2fmae.core.config import Config
from c2fmae.core.config_diff import config_differences
from c2fmae.core.distributed import World
from c2fmae.core.environment import collect_environment, describe_environment_changes
from c2fmae.core.errors import UserError
from c2fmae.core.files import check_disk_space
from c2fmae.core.json_file import write_json
from c2fmae.core.loop import TrainingState
from c2fmae.core.metric_rows import truncate_rows
from c2fmae.core.run_dir import RUN_ID_KEY, RunDir
from c2fmae.core.run_info import RunInfo
from c2fmae.core.sharding import compute_total_norm
from c2fmae.core.training import CompiledParts
from c2fmae.core.yaml_file import read_yaml

log = logging.getLogger(__name__)


def start_or_resume(
    training: TrainingState,
    run_dir: RunDir,
    world: World,
    config: Config,
    metadata: Mapping[str, Any],
    *,
    total_steps: int,
    checkpoint_bytes: int,
    compiled_parts: CompiledParts,
    resume: bool,
    accept_changes: bool,
) -> bool:
    """Write the config and environment of a new run, or restore the training state from the newest intact checkpoint.

    Raises a `UserError` if the checkpoint is of another run, or if the config differs from the stored one, unless
    `accept_changes`. `checkpoint_bytes` is the disk space that all checkpoints will need. Returns whether nothing is
    left to do: the run is finished and the checkpoint of its last step is intact.
    """
    is_finished: bool = world.broadcast_object((run_dir.read_state() or {}).get("status") == "finished")
    if world.is_main and not is_finished:
        files = (file for path in list_checkpoints(run_dir.checkpoints) for file in path.rglob("*") if file.is_file())
        bytes_used = sum(file.stat().st_size for file in files)
        check_disk_space(run_dir.path, num_bytes=checkpoint_bytes - bytes_used)
    environment = collect_environment(world_size=world.size, compile=compiled_parts)
    if not world.broadcast_object(run_dir.is_started):
        if list_checkpoints(run_dir.checkpoints):
            raise UserError(f"{run_dir.path}: has checkpoints but no config.yaml. Restore it, or choose another --out")
        if world.is_main:
            write_json(run_dir.environment_path, {RUN_ID_KEY: secrets.token_hex(8), **environment})
            run_dir.write_text(run_dir.config_path.name, config.to_yaml())  # last: it marks the run as started
            run_dir.write_state("running", step=0)
        return False
    if not resume:
        raise UserError(f"{run_dir.path}: contains a run. Use --resume to continue it, or choose another --out")
    saved_environment = world.broadcast_object(run_dir.read_environment())
    changes = _list_changes(read_yaml(run_dir.config_path), config, source=str(run_dir.config_path))
    checkpoint = load_resume_checkpoint(run_dir, world)
    if checkpoint is not None:
        changes += check_same_run(run_dir, checkpoint, config, saved_environment, known_changes=changes)
        backbone = RunInfo.from_checkpoint(checkpoint, run_dir.checkpoints / step_name(checkpoint.step)).backbone
        _check_classes(run_dir, backbone.class_names, metadata["backbone"]["class_names"])
        if (saved_samples := checkpoint.metadata.get("samples")) != metadata["samples"]:
            changes.append(f"samples of the data: {saved_samples} → {metadata['samples']}")
    if changes and not accept_changes:
        raise UserError(
            "\n".join(
                [f"{run_dir.path}: the config differs from that of the run. Use --accept-changes to resume with:"]
                + [f"  {change}" for change in changes]
            )
        )
    if checkpoint is not None:
        try:
            training.restore(
                checkpoint.tensors, step=checkpoint.step, bad_steps=checkpoint.metadata.get("bad_steps", 0)
            )
        except UserError as error:
            raise UserError(f"{run_dir.path}: {error}") from error
    is_finished = is_finished and training.step >= total_steps
    if is_finished and world.is_main:
        log.info("%s: all %d steps are done", run_dir.path, total_steps)
    elif world.is_main:
        run_id = saved_environment.get(RUN_ID_KEY) or (checkpoint and checkpoint.metadata.get(RUN_ID_KEY))
        saved_environment = {RUN_ID_KEY: run_id or secrets.token_hex(8), **saved_environment}
        _record_resume(run_dir, training.step, config, saved_environment, environment, changes)
        for path in (run_dir.metrics, run_dir.timing):
            truncate_rows(path, after_step=training.step)
    return is_finished


def load_resume_checkpoint(run_dir: RunDir, world: World) -> Checkpoint | None:
    """Return the newest intact checkpoint, the same on all ranks; None if there are no checkpoints.

    Damaged ones, and those whose weights are not finite, are skipped with a warning. Raises a `UserError` if none is
    left.
    """
    checkpoint, errors = (
        load_newest_checkpoint(run_dir.checkpoints, check=check_finite) if world.is_main else (None, [])
    )
    for text in errors:
        log.warning("%s", text)
    if errors and checkpoint is None:
        raise UserError(f"{run_dir.checkpoints}: no checkpoint is intact. Restore one, or start again in another --out")
    name = world.broadcast_object(step_name(checkpoint.step) if checkpoint else None)
    if name and not world.is_main:
        return load_checkpoint(run_dir.checkpoints / name)
    return checkpoint


def check_finite(path: Path, checkpoint: Checkpoint) -> None:
    """Raise a `UserError` for a checkpoint whose weights are not finite."""
    weights = [tensor for tensor in checkpoint.tensors_of("model").values() if tensor.is_floating_point()]
    if not compute_total_norm(weights).isfinite():
        raise UserError(f"{path}: its weights are not finite, so training cannot continue from it. Remove it")


def _list_changes(values: Mapping[str, Any], config: Config, *, source: str) -> list[str]:
    """Return the differences of a config from a stored one that may change results.

    Settings that later versions added have their defaults in the stored one.
    """
    stored = type(config).from_dict(values, source=source).model_dump(mode="json")
    changes = config_differences(stored, config.model_dump(mode="json"))
    return [change for change in changes if not config.is_resume_safe(_changed_key(change))]


def _changed_key(change: str) -> str:
    return change.partition(":")[0]


def check_same_run(
    run_dir: RunDir,
    checkpoint: Checkpoint,
    config: Config,
    environment: Mapping[str, Any],
    *,
    known_changes: Sequence[str],
) -> list[str]:
    """Raise a `UserError` if a checkpoint has the id of another run. Return further changes of the config since it.

    Changes that were accepted before are not returned. A checkpoint of another run that has no id has at least the same
    config.
    """
    path = run_dir.checkpoints / step_name(checkpoint.step)
    run_id, checkpoint_id = environment.get(RUN_ID_KEY), checkpoint.metadata.get(RUN_ID_KEY)
    if run_id and checkpoint_id and run_id != checkpoint_id:
        raise UserError(
            f"{path}: is a checkpoint of another run (its run_id is {checkpoint_id}, that of this run {run_id}). Move "
            "it to another directory to resume without it, or use it as initial weights of a new run"
        )
    known = {_changed_key(change) for change in (*known_changes, *_accepted_changes(environment))}
    changes = _list_changes(RunInfo.from_checkpoint(checkpoint, path).config, config, source=str(path))
    return [
        f"{change} (since {path.name}, which may be of another run)"
        for change in changes
        if _changed_key(change) not in known
    ]


def _list_resumes(environment: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the records of all resumes of a run."""
    resumes: list[dict[str, Any]] = environment.get("resumed", [])
    return resumes


def _accepted_changes(environment: Mapping[str, Any]) -> list[str]:
    return [change for resume in _list_resumes(environment) for change in resume.get("changes", [])]


def _check_classes(run_dir: RunDir, old: Sequence[str], new: Sequence[str]) -> None:
    if list(old) != list(new):
        raise UserError(
            f"{run_dir.path}: was trained on {len(old)} classes ({_abbreviate_names(old)}), but the data has "
            f"{len(new)} ({_abbreviate_names(new)}). Resume with the previous data"
        )


def _abbreviate_names(names: Sequence[str]) -> str:
    return ", ".join([*(names or ["no names"])[:3], *["…"] * (len(names) > 3)])


def _record_resume(
    run_dir: RunDir,
    step: int,
    config: Config,
    saved_environment: Mapping[str, Any],
    environment: Mapping[str, Any],
    changes: Sequence[str],
) -> None:
    environment_changes = describe_environment_changes(saved_environment, environment)
    log.info("resuming at step %d", step)
    for change in (*changes, *environment_changes):
        log.info("  changed: %s", change)
    if environment_changes:
        log.info("  data and masks stay the same, but results may differ in their last bits")
    resumed = [*_list_resumes(saved_environment), {"step": step, "changes": [*changes, *environment_changes]}]
    write_json(run_dir.environment_path, {**saved_environment, "resumed": resumed})
    run_dir.write_text(run_dir.config_path.name, config.to_yaml())
    run_dir.write_state("running", step=step)
