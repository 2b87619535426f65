"""Pre-training, one run from top to bottom.

>>> from c2fmae.recipes.config import read_recipe
>>> print(plan_of(read_recipe("c2fmae-b").training, num_samples=1_281_167, processes=64))
250000 steps (400 epochs of 625), 25000 of warm-up; batch 2048 = 64 processes × 32; learning rate up to 0.0008
"""

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, Literal

from c2fmae.core.checkpoint import checkpoints_in
from c2fmae.core.config import Config
from c2fmae.core.errors import RunError, UserError
from c2fmae.core.loop import Loop, Report, Training
from c2fmae.core.pictures import save_png
from c2fmae.core.resuming import begin
from c2fmae.core.run_folder import RunFolder, open_run, read_rows
from c2fmae.core.saving import Saver, SavingConfig
from c2fmae.core.sharding import whole
from c2fmae.core.signals import Stop, catching_signals
from c2fmae.core.trackers import require
from c2fmae.core.training import Plan, TrainingConfig, plan_of
from c2fmae.core.watching import Watch, WatchingConfig, is_due
from c2fmae.core.world import World, is_lost, join_world
from c2fmae.data import BatchStream, Position, Sampler, Scenes
from c2fmae.data.config import DataConfig
from c2fmae.data.loader import telling_of_dead_workers
from c2fmae.eval.held_out import HeldOut
from c2fmae.eval.report import Section, render, run_page
from c2fmae.eval.running import sections_of
from c2fmae.eval.views.reconstruct import draw_reconstruction, masks_like_training, take_scenes
from c2fmae.methods import MaskedAutoencoding, MethodConfig, build_method
from c2fmae.methods.fit import fitted, maps_needed
from c2fmae.methods.start import start_from
from c2fmae.methods.task import PretrainingTask

log = logging.getLogger(__name__)


class PretrainConfig(Config):
    """Everything that decides what a run learns, and how it is kept and shown."""

    method: MethodConfig
    data: DataConfig = DataConfig()
    training: TrainingConfig = TrainingConfig(epochs=400, base_lr=1e-4, warmup_epochs=40)
    saving: SavingConfig = SavingConfig()
    watching: WatchingConfig = WatchingConfig()
    init: str | None = None
    """Weights to start from, unless drawn: a run, or whatever else `load_backbone` takes."""


@dataclass(frozen=True)
class Experiment:
    """A config, and what becomes of it with this data and these processes."""

    config: PretrainConfig
    scenes: Scenes
    held_out: HeldOut | None
    plan: Plan
    method: MaskedAutoencoding
    world: World


@dataclass(frozen=True)
class Outcome:
    """How a run ended, and the exit code that says so."""

    status: Literal["finished", "saved-on-signal"]
    step: int
    code: int = 0


def pretrain(config: PretrainConfig, out: Path, *, resume: bool = False, accept_changes: bool = False) -> Outcome:
    """Run a config in a folder, or go on with the run that is there."""
    with join_world(config.training.device) as world, folder_of(out, world) as run:
        it = set_up(config, world, is_new=not world.share(bool(checkpoints_in(run.checkpoints))))
        training = Training.start(it.method.model, it.config.training)
        for name in it.config.watching.trackers if world.is_first else ():
            require(name)
        is_over = begin(
            training,
            run,
            world,
            it.config,
            facts_of(it),
            steps=it.plan.steps,
            room=room_for(it, training),
            compiled=it.config.training.compile,
            resume=resume,
            accept_changes=accept_changes,
        )
        if is_over:
            return Outcome("finished", training.step)
        if world.is_first:
            log.info("%s", it.plan)
        try:
            with catching_signals() as stop:
                outcome = train(it, training, run, stop)
        except BaseException as error:
            if world.is_first:
                with suppress(UserError):  # on a full disk: what came first is what is to be told
                    why = "another process is gone" if is_lost(error) else str(error) or type(error).__name__
                    run.write_state("failed", step=training.step, why=why)
            raise
        if world.is_first:
            run.write_state(outcome.status, step=outcome.step)
            try:
                write_page(run)
            except Exception as error:  # the page is a view of the run, not the run
                log.warning("%s: could not be written: %s", run.report, error)
        return outcome


def set_up(config: PretrainConfig, world: World, *, is_new: bool = True) -> Experiment:
    """Open the data, fit the config to it, and build the model with its weights as they are before the first step."""
    names = maps_needed(config.method)
    scenes, held_out = config.data.open_training(names), config.data.open_held_out(names)
    config = config.model_copy(update={"method": fitted(config.method, scenes.info)})
    plan = plan_of(config.training, num_samples=len(scenes), processes=world.size)
    method = build_method(config.method, seed=config.training.seed)
    if config.init and is_new:
        log.log(logging.INFO if world.is_first else logging.DEBUG, "%s", start_from(method, config.init))
    if config.training.sharded:
        world.shard(method.model)
    method.model.to(world.device)
    if config.training.compile:
        method.model.compile()
    looked_at = None
    if held_out is not None:
        fitted(config.method, held_out.info)
        view = config.data.held_out_view(**method.cut)
        looked_at = HeldOut(held_out, view, config.data.held_out_samples, world)
    return Experiment(config, scenes, looked_at, plan, method, world)


def train(it: Experiment, training: Training, run: RunFolder, stop: Stop) -> Outcome:
    """Take steps to the end of the plan, or until somebody says stop."""
    config, plan, world = it.config, it.plan, it.world
    loop = Loop(PretrainingTask(it.method, config.training.seed), config.training, plan, world)
    with ExitStack() as stack:
        batches = stack.enter_context(closing(batches_from(it, training.step)))
        saver = stack.enter_context(Saver(run.checkpoints, config.saving, world, facts_of(it)))
        settings = config.model_dump(mode="json")
        watch = stack.enter_context(
            Watch(run, config.watching, plan, done=training.step, settings=settings, is_quiet=not world.is_first)
        )

        def ask() -> dict[str, int]:
            return {"stop": bool(stop), "save": saver.is_late, "broken": len(batches.skipped)}

        if training.step:
            look(it, training, run, watch, is_again=True)  # a run may end between a step and the look that is due
        stack.enter_context(telling_of_dead_workers())
        for report in loop.steps(training, watch.timed(batches), ask):
            watch.after(report)
            refuse_broken(it, report.answers["broken"])
            if report.trouble is not None:
                note_trouble(it, training, run, report)
            is_asked = report.answers["stop"] or report.answers["save"]
            if is_asked or config.saving.is_due(training.step, plan.steps):
                watch.sync()
                saver.save(training)
            if report.answers["stop"]:
                return Outcome("saved-on-signal", training.step, stop.code)
            look(it, training, run, watch)
    return Outcome("finished", training.step)


def look(it: Experiment, training: Training, run: RunFolder, watch: Watch, *, is_again: bool = False) -> None:
    """Take held-out losses and draw reconstructions, where they are due; `is_again` where they may be there."""
    step, total, every = training.step, it.plan.steps, it.config.watching
    if it.held_out and is_due(step, every.held_out_every or it.plan.steps_per_epoch, total):
        rows = read_rows(run.metrics) if is_again and it.world.is_first else []
        if not it.world.share(any("held_out/loss" in row for row in rows if row["step"] == step)):
            with whole(it.method.model):
                watch.note(step, it.held_out.losses(it.method, it.config.training))
    if every.pictures and is_due(step, every.pictures_every or max(total // 10, 1), total):
        with whole(it.method.model):  # by all processes, to be used by one
            if it.world.is_first:
                draw(it, run, watch, step)


def draw(it: Experiment, run: RunFolder, watch: Watch, step: int) -> None:
    """Draw reconstructions of a few scenes."""
    path = run.pictures / f"step-{step:08d}.png"
    scenes = take_scenes(it.method, it.held_out.scenes if it.held_out else it.scenes, it.config.watching.pictures)
    masks = masks_like_training(it.method, scenes)
    names = it.scenes.info.class_names
    save_png(draw_reconstruction(it.method, scenes, masks, model=f"step {step}", class_names=names), path)
    watch.picture(step, "reconstructions", path)


def write_page(run: RunFolder, extra: Sequence[Section] = ()) -> None:
    """Write the page about a run."""
    page = run_page(
        read_rows(run.metrics),
        run.config_path.read_text(encoding="utf-8"),
        json.loads((run.path / "environment.json").read_text(encoding="utf-8")),
        sorted(run.pictures.glob("step-*.png")),
        extra,
        sections_of(run.path),
    )
    run.write_text(run.report.name, render(page))


def note_trouble(it: Experiment, training: Training, run: RunFolder, report: Report) -> None:
    """Write down what was in a step that was skipped; too many in a row end the run."""
    name = f"trouble/step-{report.step:08d}-process-{it.world.rank}.json"
    parts = [
        {key: value if not isinstance(value, float) or isfinite(value) else None for key, value in part.items()}
        for part in report.trouble or []
    ]
    norm = report.values["grad_norm"]
    trouble = {"step": report.step, "grad_norm": norm if isfinite(norm) else None, "parts": parts}
    run.write_text(name, json.dumps(trouble, indent=2) + "\n")
    if training.bad_steps >= it.config.training.max_bad_steps:
        last = checkpoints_in(run.checkpoints)
        kept = f"The last checkpoint, {last[-1].name}, is good" if last else "There is no checkpoint yet"
        raise RunError(
            f"{training.bad_steps} steps in a row had a loss or gradient that is not finite, the last is step "
            f"{report.step}. {kept}. {run.path / name} has the samples and losses; try a lower learning rate, "
            "training.clip=1, or training.precision=fp32"
        )


def refuse_broken(it: Experiment, count: int) -> None:
    """End the run where more samples are broken, over all processes, than may be skipped."""
    share = it.config.data.max_broken
    if count > share * len(it.scenes):
        raise UserError(
            f"{count} of {len(it.scenes)} samples are broken, more than the {share:.2%} that may be skipped "
            "(data.max_broken). List them with `c2fmae data check`"
        )


def batches_from(it: Experiment, step: int) -> BatchStream:
    """Return the batches from a step on: where they are in the data is a function of the step."""
    plan, world = it.plan, it.world
    sampler = Sampler(
        num_samples=len(it.scenes),
        batch_size=plan.batch_size,
        seed=it.config.training.seed,
        repeats=it.config.data.repeats,
        rank=world.rank,
        world_size=world.size,
    )
    loader = it.config.data.training_loader(it.scenes, sampler, pin=world.device.type == "cuda", **it.method.cut)
    epochs = -(-plan.steps // plan.steps_per_epoch)
    return loader.batches(epochs, Position(*divmod(step, plan.steps_per_epoch)))


def facts_of(it: Experiment) -> dict[str, Any]:
    """Return what a checkpoint says of itself beside its tensors."""
    mean, std = it.method.config.normalisation("rgb")
    return {
        "config": it.config.model_dump(mode="json"),
        "classes": list(it.scenes.info.class_names),
        "labels": list(it.scenes.info.label_names),
        "normalisation": {"mean": list(mean), "std": list(std)},
        "samples": len(it.scenes),
    }


@contextmanager
def folder_of(out: Path, world: World) -> Iterator[RunFolder]:
    """Open a run's folder: the first process has it to itself, for all."""
    with open_run(out) if world.is_first else nullcontext(RunFolder(out)) as run:
        world.wait()
        yield run


def room_for(it: Experiment, training: Training) -> int:
    """Return the bytes that a run's checkpoints will take: weights, two moments and the average, one more than kept."""
    weights = sum(parameter.numel() * parameter.element_size() for parameter in training.model.parameters())
    saving, copies = it.config.saving, 3 + (training.average is not None)
    kept = it.plan.steps // saving.keep_every if saving.keep_every else 0
    return weights * copies * (saving.keep_last + 1 + kept)
