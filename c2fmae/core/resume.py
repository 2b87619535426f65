"""How a run begins in its folder, or goes on from where it was."""

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from c2fmae.core.checkpoint import Checkpoint, checkpoints_in, load_checkpoint, newest_checkpoint
from c2fmae.core.config import Config, read_yaml
from c2fmae.core.distributed import World
from c2fmae.core.environment import environment, environment_changes
from c2fmae.core.errors import UserError
from c2fmae.core.loop import Training
from c2fmae.core.run_dir import RunFolder, check_room, cut_rows, differences

log = logging.getLogger(__name__)

WITHOUT_EFFECT = (
    *("saving.", "watching.", "data.workers:", "data.prefetch:", "data.keep:"),
    *("name:", "title:", "source:", "reported:", "deviations:", "unmeasured:"),
)
"""How settings begin that may differ in a run that goes on: it learns the same whatever they are."""


def begin(
    training: Training,
    run: RunFolder,
    world: World,
    config: Config,
    facts: Mapping[str, Any],
    *,
    steps: int,
    room: int,
    compiled: bool,
    resume: bool,
    accept_changes: bool,
) -> bool:
    """Note a new run's config and environment, or bring the training to the newest whole checkpoint.

    A config that differs is refused unless that is accepted. `facts` are what checkpoints say of the data, `room` the
    bytes that all of them will take. Returns whether nothing is left to do: the run says that it is finished, and the
    checkpoint of its last step is whole.
    """
    is_over: bool = world.share((run.read_state() or {}).get("status") == "finished")
    if world.is_first and not is_over:
        files = (file for path in checkpoints_in(run.checkpoints) for file in path.rglob("*") if file.is_file())
        taken = sum(file.stat().st_size for file in files)
        check_room(run.path, needed=room - taken)
    now = environment(world_size=world.size, compile=compiled)
    if not world.share(run.is_begun):
        if checkpoints_in(run.checkpoints):
            raise UserError(f"{run.path}: has checkpoints, but no config.yaml that tells of what. Give another --out")
        if world.is_first:
            run.write_text("environment.json", _json(now))
            run.write_text("config.yaml", config.to_yaml())  # last: with it the run has begun
            run.write_state("running", step=0)
        return False
    if not resume:
        raise UserError(f"{run.path}: there is a run already. Go on with it by --resume, or give another --out")
    changes = [
        change
        for change in differences(_as_read_today(run, config), config.model_dump(mode="json"))
        if not change.startswith(WITHOUT_EFFECT)
    ]
    checkpoint = newest_of(run, world)
    if checkpoint is not None:
        _check_classes(run, checkpoint.facts, facts)
        if (before := checkpoint.facts.get("samples")) != facts["samples"]:
            changes.append(f"samples of the data: {before} → {facts['samples']}")
    if changes and not accept_changes:
        raise UserError(
            "\n".join(
                [f"{run.path}: its config differs from the one given. Give --accept-changes to go on with these:"]
                + [f"  {change}" for change in changes]
            )
        )
    if checkpoint is not None:
        try:
            training.restore(checkpoint.tensors, step=checkpoint.step, bad_steps=checkpoint.facts.get("bad_steps", 0))
        except UserError as error:
            raise UserError(f"{run.path}: {error}") from error
    is_over = is_over and training.step >= steps
    if is_over and world.is_first:
        log.info("%s: all %d steps are done", run.path, steps)
    elif world.is_first:
        _note_resume(run, training.step, config, now, changes)
        for path in (run.metrics, run.timing):
            cut_rows(path, after_step=training.step)
    return is_over


def newest_of(run: RunFolder, world: World) -> Checkpoint | None:
    """Return the newest whole checkpoint, the same in all processes; say which were passed over."""
    found, refused = newest_checkpoint(run.checkpoints) if world.is_first else (None, [])
    for text in refused:
        log.warning("%s", text)
    if refused and found is None:
        raise UserError(f"{run.checkpoints}: no checkpoint is whole. Restore one, or begin anew in another --out")
    name = world.share(f"step-{found.step:08d}" if found else None)
    if name and not world.is_first:
        return load_checkpoint(run.checkpoints / name)
    return found


def _as_read_today(run: RunFolder, config: Config) -> dict[str, Any]:
    """Return the config of a run with the defaults of settings that came later."""
    values = read_yaml(run.config_path)
    return type(config).read(values, source=str(run.config_path)).model_dump(mode="json")


def _check_classes(run: RunFolder, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    was, found = before.get("classes"), now.get("classes")
    if was != found:
        raise UserError(
            f"{run.path}: was trained on {len(was or [])} classes ({_few(was)}), but the data has {len(found or [])} "
            f"({_few(found)}). Resume with the data of before"
        )


def _few(names: Sequence[str] | None) -> str:
    return ", ".join([*(names or ["no names"])[:3], *(["…"] if names and len(names) > 3 else [])])


def _note_resume(run: RunFolder, step: int, config: Config, now: Mapping[str, Any], changes: Sequence[str]) -> None:
    try:
        before = json.loads((run.path / "environment.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        before = {}
    moved = environment_changes(before, now)
    log.info("resuming at step %d", step)
    for change in (*changes, *moved):
        log.info("  changed: %s", change)
    if moved:
        log.info("  so what follows sees the same data and masks, but its bits may differ")
    resumed = [*before.get("resumed", []), {"step": step, "changes": [*changes, *moved]}]
    run.write_text("environment.json", _json({**before, "resumed": resumed}))
    run.write_text("config.yaml", config.to_yaml())
    run.write_state("running", step=step)


def _json(tree: Mapping[str, Any]) -> str:
    return json.dumps(tree, indent=2, ensure_ascii=False) + "\n"
