"""What an epoch of pre-training costs relative to MAE's: by operations, and by the time of real steps.

An epoch sees as many images whatever the method, so that the ratio of epochs is that of images.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from statistics import median
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from c2fmae.config.method import MethodConfig
from c2fmae.core.distributed import World
from c2fmae.core.granularity import GRANULARITIES
from c2fmae.core.loop import TrainingLoop, TrainingState
from c2fmae.core.operation_count import ForwardCost
from c2fmae.core.scene import SceneBatch
from c2fmae.core.training import TrainingConfig, plan_training
from c2fmae.eval.cost.timing import WARMUP_ROUNDS, Clock, describe_machine, synchronised, time_in_turn
from c2fmae.eval.evaluation import Precision
from c2fmae.methods import METHODS, MaskedAutoencoding, build_method
from c2fmae.methods.masked.cost import compute_pretraining_cost
from c2fmae.methods.masked.task import PretrainingTask
from c2fmae.models import label_stride

K = TypeVar("K")


@dataclass(frozen=True)
class EpochCost:
    """A method's cost beside that of MAE with the same encoder and photos."""

    method: MethodConfig
    mae: MethodConfig
    cost: ForwardCost
    mae_cost: ForwardCost
    step_seconds: tuple[float, ...]
    """Of a step, by round."""
    mae_step_seconds: tuple[float, ...]
    machine: str
    """Where the steps were timed, and how."""

    @property
    def flops_ratio(self) -> float:
        """The ratio of a forward pass's operations; a backward pass has twice as many on both sides."""
        return self.cost.flops / self.mae_cost.flops

    @property
    def time_ratio(self) -> float:
        """The median over rounds of the ratio of a step's times."""
        return median(ours / theirs for ours, theirs in zip(self.step_seconds, self.mae_step_seconds, strict=True))

    @property
    def fastest_step_ratio(self) -> float:
        """The ratio of the quickest steps, which other work on the machine disturbs least."""
        return min(self.step_seconds) / min(self.mae_step_seconds)


def matching_mae_config(config: MethodConfig) -> MethodConfig:
    """Return MAE with a method's encoder, photos and their normalisation; decoder, masks and norm are MAE's."""
    mae = METHODS.get("mae")()
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
    """Return what each method's epoch costs; its steps and MAE's take turns, on noise, without reading any data.

    Steps are those of a run: masks, forward, backward, AdamW. The methods come one after the other, so that no more
    than two are in memory.
    """
    device = device or torch.device("cpu")
    costs = {}
    with torch.random.fork_rng(devices=[]):  # steps seed the global generator
        for name, method in methods.items():
            configs = {"method": method, "mae": matching_mae_config(method)}
            steps = {key: _make_step(config, device, batch_size, rounds, precision) for key, config in configs.items()}
            seconds = time_in_turn(steps, rounds=rounds, clock=clock)
            costs[name] = EpochCost(
                method=method,
                mae=configs["mae"],
                cost=compute_pretraining_cost(method),
                mae_cost=compute_pretraining_cost(configs["mae"]),
                step_seconds=tuple(seconds["method"]),
                mae_step_seconds=tuple(seconds["mae"]),
                machine=f"{describe_machine(device)}, {precision}, {batch_size} images a step",
            )
            del steps
    return costs


def _make_step(
    config: MethodConfig, device: torch.device, batch_size: int, rounds: int, precision: Precision
) -> Callable[[], None]:
    """Return what takes the next step of a run that is as long as it is timed, so that all of a curriculum is seen."""
    method = build_method(config)
    method.model.to(device)
    training = TrainingConfig(steps=rounds + WARMUP_ROUNDS, batch_size=batch_size, lr=1e-4, precision=precision)
    plan = plan_training(training, num_samples=batch_size, world_size=1)
    loop = TrainingLoop(PretrainingTask(method, training.seed), training, plan, World(device=device))
    steps = loop.run(
        TrainingState.create(method.model, training), repeat(_random_scenes(method, batch_size).to(device))
    )
    return synchronised(partial(next, steps), device)


def _random_scenes(method: MaskedAutoencoding, batch_size: int) -> SceneBatch:
    """Return scenes of noise, whose id maps have regions of 4 × 4 patches; maps that masks go by are always there."""
    config, patch = method.config, method.patch_size
    height, width = config.image_size
    generator, maps = torch.Generator().manual_seed(0), dict[str, Tensor]()
    for name in dict.fromkeys([*config.granularities, "semantic", "instance"]):
        channels = config.num_channels(name)
        if GRANULARITIES.get(name).kind == "ids":
            regions = (batch_size, 1, -(-height // (4 * patch)), -(-width // (4 * patch)))
            ids = torch.randint(channels, regions, generator=generator, dtype=torch.uint8)
            scale = 4 * patch // label_stride(patch)
            cells = F.interpolate(ids, scale_factor=scale, mode="nearest").squeeze(1)
            maps[name] = cells[:, : height // label_stride(patch), : width // label_stride(patch)]
        else:
            shape = [channels] if GRANULARITIES.get(name).kind == "image" else []
            maps[name] = torch.randint(256, (batch_size, *shape, height, width), generator=generator, dtype=torch.uint8)
    return SceneBatch(tuple(f"noise {index}" for index in range(batch_size)), maps)
