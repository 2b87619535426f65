"""Pre-training, one run from top to bottom.

>>> from c2fmae.recipes.config import read_recipe
>>> print(plan_of(read_recipe("c2fmae-b").training, num_samples=1_281_167, processes=64))
250000 steps (400 epochs of 625), 25000 of warm-up; batch 2048 = 64 processes × 32; learning rate up to 0.0008
"""

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from c2fmae.core.config import Config
from c2fmae.core.distributed import World, join_world
from c2fmae.core.experiment import Experiment, ExperimentConfig, Outcome, conduct, folder_of, is_new
from c2fmae.core.loop import Training
from c2fmae.core.run_dir import RunFolder, read_rows
from c2fmae.core.sharding import whole
from c2fmae.core.training import Plan, TrainingConfig, plan_of
from c2fmae.core.watching import Watch, is_due
from c2fmae.data import BatchStream, Scenes
from c2fmae.data.config import DataConfig
from c2fmae.data.loader import telling_of_dead_workers
from c2fmae.eval.results import sections_of
from c2fmae.methods import MaskedAutoencoding, MethodConfig, build_method
from c2fmae.methods.dataset_defaults import fitted, maps_needed
from c2fmae.methods.held_out import HeldOut
from c2fmae.methods.initial_weights import start_from
from c2fmae.methods.task import PretrainingTask
from c2fmae.report import Section, render, run_page
from c2fmae.report.drawing import save_png
from c2fmae.views.reconstruction import draw_reconstruction, masks_like_training, take_scenes

log = logging.getLogger(__name__)


class Lesson(Config):
    """What is learned, and from what."""

    method: MethodConfig
    data: DataConfig = DataConfig()
    init: str | None = None
    """Weights to start from, unless drawn: a run, or whatever else `load_backbone` takes."""


class PretrainConfig(ExperimentConfig, Lesson):  # in this order YAML begins with what is learned
    """Everything that decides what a run learns, and how it is kept and shown."""

    training: TrainingConfig = TrainingConfig(epochs=400, base_lr=1e-4, warmup_epochs=40)


@dataclass(frozen=True)
class Pretraining(Experiment):
    """A config, and what becomes of it with this data and these processes."""

    config: PretrainConfig
    scenes: Scenes
    held_out: HeldOut | None
    plan: Plan
    method: MaskedAutoencoding
    world: World

    @property
    def settings(self) -> PretrainConfig:
        """The config, fitted to the data."""
        return self.config

    @property
    def model(self) -> nn.Module:
        """The autoencoder."""
        return self.method.model

    @cached_property
    def task(self) -> PretrainingTask:
        """Rebuild what is hidden."""
        return PretrainingTask(self.method, self.config.training.seed)

    @contextmanager
    def batches(self, step: int) -> Iterator[BatchStream]:
        """Give the batches from a step on."""
        pin = self.world.device.type == "cuda"
        data, training = self.config.data, self.config.training
        view = data.training_view(**self.method.cut)
        stream = data.training_batches(
            self.scenes, view, self.plan, step, seed=training.seed, rank=self.world.rank, pin=pin
        )
        with closing(stream), telling_of_dead_workers():
            yield stream

    def facts(self) -> dict[str, Any]:
        """Return what a checkpoint says of itself beside its tensors."""
        mean, std = self.method.config.normalisation("rgb")
        return {
            "config": self.config.model_dump(mode="json"),
            "classes": list(self.scenes.info.class_names),
            "labels": list(self.scenes.info.label_names),
            "normalisation": {"mean": list(mean), "std": list(std)},
            "samples": len(self.scenes),
        }

    def refuse_broken(self, count: int) -> None:
        """End the run where more samples are broken than may be."""
        self.config.data.refuse_broken(count, len(self.scenes))

    def look(self, training: Training, run: RunFolder, watch: Watch, *, is_again: bool = False) -> None:
        """Take held-out losses and draw reconstructions, where they are due."""
        step, total, every = training.step, self.plan.steps, self.config.watching
        if self.held_out and is_due(step, every.held_out_every or self.plan.steps_per_epoch, total):
            rows = read_rows(run.metrics) if is_again and self.world.is_first else []
            if not self.world.share(any("held_out/loss" in row for row in rows if row["step"] == step)):
                with whole(self.model):
                    watch.note(step, self.held_out.losses(self.method, self.config.training))
        if every.pictures and is_due(step, every.pictures_every or max(total // 10, 1), total):
            with whole(self.model):  # by all processes, to be used by one
                if self.world.is_first:
                    self.draw(run, watch, step)

    def draw(self, run: RunFolder, watch: Watch, step: int) -> None:
        """Draw reconstructions of a few scenes."""
        path = run.pictures / f"step-{step:08d}.png"
        source = self.held_out.scenes if self.held_out else self.scenes
        scenes = take_scenes(self.method, source, self.config.watching.pictures)
        masks = masks_like_training(self.method, scenes)
        names = self.scenes.info.class_names
        save_png(draw_reconstruction(self.method, scenes, masks, model=f"step {step}", class_names=names), path)
        watch.picture(step, "reconstructions", path)

    def write_page(self, run: RunFolder) -> None:
        """Write the page about the run."""
        write_page(run)


def pretrain(config: PretrainConfig, out: Path, *, resume: bool = False, accept_changes: bool = False) -> Outcome:
    """Run a config in a folder, or go on with the run that is there."""
    with join_world(config.training.device) as world, folder_of(out, world) as run:
        it = set_up(config, world, is_new=is_new(run, world))
        return conduct(it, run, resume=resume, accept_changes=accept_changes)


def set_up(config: PretrainConfig, world: World, *, is_new: bool = True) -> Pretraining:
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
    return Pretraining(config, scenes, looked_at, plan, method, world)


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
