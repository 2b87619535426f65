"""Cost of an epoch of pre-training relative to MAE: by operations, and by the measured time of training steps.

An epoch has the same number of images for every method, so the ratio of epochs equals the ratio of images or steps.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from statistics import median
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from c2fmae.config.data import DataConfig
from c2fmae.config.masked_method import MaskedConfig
from c2fmae.config.method import MethodConfig
from c2fmae.core.distributed import World
from c2fmae.core.granularity import GRANULARITIES
from c2fmae.core.loop import TrainingLoop, TrainingState
from c2fmae.core.operation_count import ForwardCost
from c2fmae.core.scene import Scene, SceneBatch
from c2fmae.core.text import format_count
from c2fmae.core.training import TrainingConfig, plan_training
from c2fmae.eval.cost.speed_and_memory import (
    WARMUP_ROUNDS,
    Clock,
    describe_machine,
    make_synchronous,
    time_in_turn,
)
from c2fmae.eval.evaluation import Precision
from c2fmae.methods import METHODS, Method, build_method

log = logging.getLogger(__name__)

K = TypeVar("K")


@dataclass(frozen=True)
class EpochCost:
    """Cost of a method, and of MAE with the same encoder and images."""

    method: MethodConfig
    mae: MaskedConfig
    cost: ForwardCost
    mae_cost: ForwardCost
    step_seconds: tuple[float, ...]
    """Duration of the method's step in each round."""
    mae_step_seconds: tuple[float, ...]
    """Duration of MAE's step in each round."""
    machine: str
    """Machine, precision and batch size of the timed steps."""

    @property
    def flops_ratio(self) -> float:
        """Ratio of the operations of a step, with all views and the teacher; a backward pass counts as two forward."""
        return self.cost.step_flops / self.mae_cost.step_flops

    @property
    def time_ratio(self) -> float:
        """Median over rounds of the ratio of the steps' durations."""
        return median(step / mae_step for step, mae_step in zip(self.step_seconds, self.mae_step_seconds, strict=True))

    @property
    def fastest_step_ratio(self) -> float:
        """Ratio of the fastest steps, which other load on the machine affects least."""
        return min(self.step_seconds) / min(self.mae_step_seconds)


def compute_step_cost(config: MethodConfig) -> ForwardCost:
    """Return the cost of a method of any kind; the model is built on the meta device and nothing is computed."""
    with torch.device("meta"):
        method = build_method(config)
    return method.compute_cost()


def make_matching_mae_config(config: MethodConfig) -> MaskedConfig:
    """Return a config of MAE with a method's encoder, image size, channels, mean and std.

    Decoder, masking and the encoder's final norm are MAE's own.
    """
    mae: MaskedConfig = METHODS.get("mae")()
    changes = {
        "image_size": config.image_size,
        "channels": {"rgb": config.num_channels("rgb")},
        "encoder": config.encoder.model_copy(update={"has_norm": mae.encoder.has_norm}),
        "mean": config.mean,
        "std": config.std,
    }
    return mae.model_copy(update=changes)


def measure_epoch_costs(
    methods: Mapping[K, MethodConfig],
    *,
    device: torch.device | None = None,
    batch_size: int = 8,
    rounds: int = 9,
    precision: Precision = "bf16",
    clock: Clock = time.perf_counter,
) -> dict[K, EpochCost]:
    """Return the cost of an epoch of each method, from training steps on noise, timed in turn with those of MAE.

    A step includes masks, the teacher, forward and backward pass and AdamW, but no data loading. One method at a time
    is in memory together with its MAE.
    """
    device = device or torch.device("cpu")
    costs = {}
    with torch.random.fork_rng(devices=[]):  # steps seed the global generator of the CPU
        for name, method in methods.items():
            mae = make_matching_mae_config(method)
            steps = {
                key: _make_step(config, device, batch_size, rounds, precision)
                for key, config in (("method", method), ("mae", mae))
            }
            images = format_count(batch_size, "image")
            log.info("timing %d steps of %s and of MAE, with %s each", rounds, method.name, images)
            seconds = time_in_turn(steps, rounds=rounds, clock=clock)
            costs[name] = EpochCost(
                method=method,
                mae=mae,
                cost=compute_step_cost(method),
                mae_cost=compute_step_cost(mae),
                step_seconds=tuple(seconds["method"]),
                mae_step_seconds=tuple(seconds["mae"]),
                machine=f"{describe_machine(device)}, {precision}, {format_count(batch_size, 'image')} a step",
            )
            del steps
    return costs


def _make_step(
    config: MethodConfig, device: torch.device, batch_size: int, rounds: int, precision: Precision
) -> Callable[[], None]:
    """Return a function that trains for one step.

    The run has as many steps as there are rounds, so that the timed steps cover the whole curriculum.
    """
    method = build_method(config)
    for module in (method.model, method.teacher):
        if module is not None:
            module.to(device)
    training = TrainingConfig(steps=rounds + WARMUP_ROUNDS, batch_size=batch_size, lr=1e-4, precision=precision)
    plan = plan_training(training, num_samples=batch_size, world_size=1)
    loop = TrainingLoop(method.build_task(plan, seed=training.seed), training, plan, World(device=device))
    state = TrainingState.create(method.model, training, method.teacher)
    return make_synchronous(partial(next, loop.run(state, repeat(_draw_scenes(method, batch_size).to(device)))), device)


def _draw_scenes(method: Method, batch_size: int) -> SceneBatch:
    """Return views of scenes of noise with all maps that masking policies need; regions of id maps have 64 × 64 cells.

    Crops are whole scenes.
    """
    config = method.config
    view = method.training_view(DataConfig(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0), config.image_size)
    scenes = [_draw_scene(config, index) for index in range(batch_size)]
    return SceneBatch.stack([view(scene, np.random.default_rng(index)) for index, scene in enumerate(scenes)])


def _draw_scene(config: MethodConfig, index: int) -> Scene:
    height, width = config.image_size
    generator, maps = torch.Generator().manual_seed(index), dict[str, Tensor]()
    for name in dict.fromkeys([*config.granularities, "semantic", "instance"]):
        channels = config.num_channels(name)
        if GRANULARITIES.get(name).kind == "ids":
            regions = torch.randint(channels, (-(-height // 64), -(-width // 64)), generator=generator)
            ids = regions.repeat_interleave(64, 0).repeat_interleave(64, 1)[:height, :width]
            maps[name] = ids.to(torch.uint8)
        else:
            shape = [channels] if GRANULARITIES.get(name).kind == "image" else []
            maps[name] = torch.randint(256, (*shape, height, width), generator=generator, dtype=torch.uint8)
    return Scene(f"noise {index}", maps)
