"""Pre-training of a masked autoencoder: data, model, steps, evaluation and report of one run.

>>> from c2fmae.recipes.config import load_recipe
>>> print(plan_training(load_recipe("c2fmae-b").training, num_samples=1_281_167, world_size=64))
250,000 steps (400 epochs of 625), 25,000 of warm-up; batch 2,048 = 64 processes × 32; learning rate up to 0.0008
"""

import logging
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from c2fmae.config.method import ImageSize, MethodConfig
from c2fmae.config.pretrain import PretrainConfig
from c2fmae.core.checkpoint import step_name
from c2fmae.core.distributed import World, init_distributed
from c2fmae.core.experiment import (
    Experiment,
    Phase,
    RunOutcome,
    is_new_run,
    locked_run_dir,
    resolve_precision,
    run_experiment,
)
from c2fmae.core.loop import TrainingState
from c2fmae.core.metric_rows import read_rows_of_step
from c2fmae.core.model_preparation import prepare_model
from c2fmae.core.run_dir import RunDir
from c2fmae.core.scene import SceneBatch
from c2fmae.core.sharding import unshard_tensors, unsharded
from c2fmae.core.training import TrainingPlan, plan_training
from c2fmae.core.watching import RunLogger, is_due
from c2fmae.data import BatchStream, DatasetInfo, Scenes, Transform
from c2fmae.data.combine import select_granularities
from c2fmae.data.loader import explain_worker_death
from c2fmae.data.sampler import DataPosition
from c2fmae.data.transforms import TransformSchedule
from c2fmae.eval.probes.online import OnlineProbes, describe_accuracies, open_online_probes
from c2fmae.methods import MaskedAutoencoding, build_method
from c2fmae.methods.dataset_defaults import fill_from_dataset
from c2fmae.methods.held_out import HeldOutEvaluator
from c2fmae.methods.initial_weights import load_initial_weights
from c2fmae.methods.protocol import BatchPreparer, Method, MethodTask
from c2fmae.models.residual_stream import narrow_streams
from c2fmae.pretrain_report import write_pretraining_report
from c2fmae.report.drawing import save_png
from c2fmae.views.reconstruction import draw_reconstruction, sample_training_masks, select_scenes

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pretraining(Experiment):
    """A pre-training run: a config with its data, model and processes."""

    config: PretrainConfig
    scenes: Scenes
    held_out: HeldOutEvaluator | None
    probes: OnlineProbes | None
    plan: TrainingPlan
    method: Method
    world: World
    value_labels: ClassVar[Mapping[str, str]] = {"alpha": "α", "beta": "β"}

    @property
    def model(self) -> nn.Module:
        """The model that the method trains."""
        return self.method.model

    @property
    def teacher(self) -> nn.Module | None:
        """The teacher of the method, if it has one."""
        return self.method.teacher

    @cached_property
    def task(self) -> MethodTask[Any]:
        """The training task of the method."""
        training = self.config.training
        compiled_parts = training.choose_compiled_parts(self.world.device.type)
        return self.method.build_task(self.plan, seed=training.seed, compiled_parts=compiled_parts)

    @property
    def phases(self) -> list[Phase]:
        """The parts of the run with one image size each."""
        schedule, steps = self.config.method.image_size_schedule, range(self.plan.steps)
        if len(schedule) == 1:
            return super().phases
        phases, start = [], 0
        for fraction, (height, width) in schedule:
            end = bisect_left(steps, fraction, key=self.plan.progress)
            phases += [Phase(f"images of {height}×{width}", steps[start:end])] if start < end else []
            start = end
        return phases

    @contextmanager
    def open_batches(self, step: int) -> Iterator[BatchStream[Sequence[Any]]]:
        """Open an iterator over batches that starts at a step. The method prepares them where they are loaded."""
        pin_memory = self.world.device.type == "cuda"
        data, training = self.config.data, self.config.training
        sizes = [size for _, size in self.config.method.image_size_schedule]
        views = {size: self.method.training_view(data, size) for size in sizes}
        stream = data.stream_training_batches(
            self.scenes,
            TransformSchedule(partial(choose_view, views, self.config.method, self.plan)),
            self.plan,
            step,
            seed=training.seed,
            rank=self.world.rank,
            finish=partial(prepare_batch, self.task.preparer, self.plan, self.world),
            pin_memory=pin_memory,
        )
        with closing(stream), explain_worker_death():
            yield stream

    def metadata(self) -> dict[str, Any]:
        """Return the metadata of checkpoints."""
        return build_pretraining_metadata(self.config, self.scenes.info, num_samples=len(self.scenes))

    def check_broken(self, num_broken: int) -> None:
        """Raise a `UserError` if more samples are broken than `data.max_broken` allows."""
        self.config.data.check_broken(num_broken, len(self.scenes))

    def _is_held_out_due(self, step: int) -> bool:
        every = self.config.watching.held_out_every or self.plan.steps_per_epoch
        return self.held_out is not None and is_due(step, every, self.plan.steps)

    def _are_probes_due(self, step: int) -> bool:
        return self.probes is not None and self.probes.is_due(step, self.plan.steps)

    def _is_figure_due(self, step: int) -> bool:
        watching, total = self.config.watching, self.plan.steps
        draws = isinstance(self.method, MaskedAutoencoding)  # others have nothing to reconstruct
        return draws and watching.figures > 0 and is_due(step, watching.figures_every or max(total // 10, 1), total)

    def is_evaluation_due(self, step: int) -> bool:
        """Return whether held-out losses, probes or a figure are due after a step."""
        return self._is_held_out_due(step) or self._are_probes_due(step) or self._is_figure_due(step)

    def evaluate(self, training: TrainingState, run_dir: RunDir, logger: RunLogger, *, is_start: bool = False) -> None:
        """Compute held-out losses, probe the encoder and draw reconstructions, if they are due after this step."""
        step = training.step
        logged: set[str] = set()
        if is_start:  # the only time at which rows of this step may exist: later steps need no broadcast
            rows = read_rows_of_step(run_dir.metrics, step) if self.world.is_main else []
            logged = self.world.broadcast_object({key for row in rows for key in row})
        if self.held_out and self._is_held_out_due(step) and "held_out/loss" not in logged:
            with unsharded(self.model):
                logger.log_metrics(step, self.held_out.compute_losses(self.method, self.config.training))
        if self.probes and self._are_probes_due(step) and not logged.intersection(self.probes.keys):
            tensors = unshard_tensors(self.model.state_dict() | (training.ema or {}))
            accuracies = self.probes.compute_accuracies(tensors)
            logger.log_metrics(step, accuracies)
            logger.print_line(f"step {step:,}: {describe_accuracies(accuracies)}")
        if self._is_figure_due(step):
            with unsharded(self.model):  # a collective: all ranks enter it
                if self.world.is_main:
                    self.draw_reconstructions(run_dir, logger, step)

    def draw_reconstructions(self, run_dir: RunDir, logger: RunLogger, step: int) -> None:
        """Draw reconstructions of a few scenes, and save and log the figure."""
        assert isinstance(self.method, MaskedAutoencoding)
        path = run_dir.figures / f"{step_name(step)}.png"
        source = self.held_out.scenes if self.held_out else self.scenes
        scenes = select_scenes(self.method, source, self.config.watching.figures)
        masks = sample_training_masks(self.method, scenes)
        names = self.scenes.info.class_names
        save_png(draw_reconstruction(self.method, scenes, masks, model_name=f"step {step}", class_names=names), path)
        logger.log_figure(step, "reconstructions", path)

    def write_report(self, run_dir: RunDir) -> None:
        """Write the HTML page about the run."""
        write_pretraining_report(run_dir)


def find_step(plan: TrainingPlan, position: DataPosition) -> int:
    """Return the step, counted from 0, that the batch at a position is for."""
    return position.epoch * plan.steps_per_epoch + position.batches_done


def choose_view(
    views: Mapping[ImageSize, Transform], method: MethodConfig, plan: TrainingPlan, position: DataPosition
) -> Transform:
    """Return the view of the size that images of the batch at a position have."""
    return views[method.choose_image_size(plan.progress(find_step(plan, position)))]


def prepare_batch(
    preparer: BatchPreparer, plan: TrainingPlan, world: World, position: DataPosition, scenes: SceneBatch
) -> Sequence[Any]:
    """Return the batch at a position in micro-batches, with all random choices that need no model."""
    step = find_step(plan, position)
    return preparer.prepare(
        scenes, num_micro_batches=plan.num_micro_batches, step=step, progress=plan.progress(step), world=world
    )


def pretrain(
    config: PretrainConfig,
    out: Path,
    *,
    scenes: Scenes | None = None,
    held_out: Scenes | None = None,
    resume: bool = False,
    accept_changes: bool = False,
) -> RunOutcome:
    """Pre-train in a run directory. With `resume`, continue the run that the directory contains.

    `scenes` replaces the data of the config, such as `DatasetScenes(dataset)`, and `held_out` its held-out scenes, by
    default by none. To resume such a run, pass the same scenes again.
    """
    with init_distributed(config.training.device) as world, locked_run_dir(out, world) as run_dir:
        is_new = is_new_run(run_dir, world)
        config = resolve_precision(config, run_dir, world)
        experiment = build_pretraining(config, world, is_new=is_new, scenes=scenes, held_out=held_out)
        return run_experiment(experiment, run_dir, resume=resume, accept_changes=accept_changes)


def build_pretraining_metadata(config: PretrainConfig, info: DatasetInfo, *, num_samples: int) -> dict[str, Any]:
    """Return the metadata of checkpoints of a config whose method was filled from the data."""
    backbone = config.method.backbone_spec(info.class_names)
    return {
        "kind": "pretraining",
        "backbone": backbone.model_dump(mode="json"),
        "config": config.model_dump(mode="json", exclude={"backbone"}),
        "labels": list(info.label_names),
        "samples": num_samples,
    }


def build_pretraining(
    config: PretrainConfig,
    world: World,
    *,
    is_new: bool = True,
    scenes: Scenes | None = None,
    held_out: Scenes | None = None,
) -> Pretraining:
    """Open the data, fill the config from it, and build the model with its initial weights.

    `scenes` and `held_out` replace the data of the config.
    """
    names = config.method.required_maps
    if scenes is None:
        scenes, held_out = config.data.open_training(names), held_out or config.data.open_held_out(names)
    else:
        data = config.data.model_copy(update={"train": None, "held_out": None})
        config = config.model_copy(update={"data": data})
        scenes = data.cache_scenes(select_granularities(scenes, names))
    held_out = held_out and select_granularities(held_out, names)
    method_config = fill_from_dataset(config.method, scenes.info)
    backbone = method_config.backbone_spec(scenes.info.class_names)
    config = config.model_copy(update={"method": method_config, "backbone": backbone})
    plan = plan_training(config.training, num_samples=len(scenes), world_size=world.size)
    method = build_method(config.method, seed=config.training.seed)
    if config.init and is_new:
        log.log(logging.INFO if world.is_main else logging.DEBUG, "%s", load_initial_weights(method, config.init))
    if config.training.precision == "bf16-stream":
        for module in (method.model, method.teacher):
            if module is not None:
                narrow_streams(module)
    for module in (method.model, method.teacher):
        if module is not None:
            prepare_model(module, config.training, world, num_shapes=config.method.num_image_sizes)
    evaluator = None
    if held_out is not None:
        fill_from_dataset(config.method, held_out.info)
        evaluator = HeldOutEvaluator(held_out, method.held_out_view(config.data), config.data.held_out_samples, world)
    probes = None
    if config.watching.probes is not None:
        probes = open_online_probes(
            config.watching.probes, backbone, config.data.train, world, num_workers=config.data.num_workers
        )
    pretraining = Pretraining(config, scenes, evaluator, probes, plan, method, world)
    _ = pretraining.task  # a method may reject the plan: here, before anything is written
    return pretraining
