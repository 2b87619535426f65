"""The evaluation `cost`: what a backbone takes, in parameters, operations, memory and time."""

from collections.abc import Iterator, Mapping
from functools import partial
from statistics import median
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from c2fmae.core.config import PositiveInt
from c2fmae.core.distributed import World
from c2fmae.core.environment import collect_environment
from c2fmae.eval.cost.backbone import compute_backbone_cost, resolve_photo_size
from c2fmae.eval.cost.memory import peak_bytes, saved_tensor_bytes
from c2fmae.eval.cost.timing import WARMUP_ROUNDS, median_interval, synchronised, time_in_turn
from c2fmae.eval.evaluation import EVALUATIONS, Evaluation, ModelUnderTest
from c2fmae.eval.metrics import Metric
from c2fmae.models.backbones import Backbone

Precision = Literal["fp32", "bf16"]


@EVALUATIONS.register("cost")
class CostEvaluation(Evaluation):
    """Parameters, operations with attention's, memory of activations, and speed here and now."""

    image_size: tuple[PositiveInt, PositiveInt] | None = None
    """Height and width of the photos; those that the backbone learned from, unless given."""
    batch_size: PositiveInt = 8
    """Photos that are timed together."""
    rounds: PositiveInt = 9
    """How many batches of each kind are timed; from 6 on there is an interval."""
    precisions: Annotated[tuple[Precision, ...], Field(min_length=1)] = ("fp32", "bf16")

    def run(self, model: ModelUnderTest) -> Iterator[Metric]:
        """Compute the metrics, in the first process, while the others wait and leave it the machine."""
        yield from measure_backbones({model.name: model.backbone}, self, model.world)[model.name]

    def describe_protocol(self, model: ModelUnderTest) -> str:
        """Say what is counted and what is timed."""
        height, width = resolve_photo_size(model.backbone, self.image_size)
        return (
            f"Of a photo of {height}×{width}. Parameters are what is learned: kept tables of positions are not. "
            "Operations are those of matrix products, attention's too; a multiplication and the addition behind it are "
            "two. Activations are the bytes that one more image makes a forward pass keep for the backward pass, "
            "without checkpointing; forward is the most that one image's pass holds at once where there is no backward "
            f"pass. Images per second are those of the median of {self.rounds} forward passes of {self.batch_size} "
            f"photos each, from standardised photos to pooled features, after {WARMUP_ROUNDS} of warm-up, all "
            "precisions and "
            "sources in turn; bf16 is autocast, which casts the weights in every pass. "
            f"Measured on {describe_machine(model.world.device)}."
        )

    def identify_inputs(self, model: ModelUnderTest) -> dict[str, str]:
        """Name the machine: on another one, speed and memory are others."""
        return {"machine": describe_machine(model.world.device)}


def measure_backbones(
    backbones: Mapping[str, Backbone], config: CostEvaluation, world: World | None = None
) -> dict[str, list[Metric]]:
    """Return every backbone's metrics, timed in turn with the others, so that ratios are fair."""
    world = world or World()
    return world.broadcast_object(_measure_in_turn(backbones, config, world.device) if world.is_main else None)  # type: ignore[no-any-return]


def describe_machine(device: torch.device) -> str:
    """Say what computes."""
    info = collect_environment()
    name = info["torch"]["version"]
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {name}"
    threads = info["torch"]["threads"]
    return f"{threads} thread{'s' * (threads > 1)} of {info['cpu']}, torch {name}"


def _measure_in_turn(
    backbones: Mapping[str, Backbone], config: CostEvaluation, device: torch.device
) -> dict[str, list[Metric]]:
    metrics, forward_passes = {}, {}
    for name, backbone in backbones.items():
        size = resolve_photo_size(backbone, config.image_size)
        backbone.to(device)
        metrics[name] = [*_operation_metrics(backbone, size), *_memory_metrics(backbone, size, config, device)]
        photos = _random_images(backbone, config.batch_size, size, device)
        for precision in config.precisions:
            forward_passes[name, precision] = synchronised(
                partial(_forward_without_grad, backbone, photos, precision), device
            )
    for (name, precision), seconds in time_in_turn(forward_passes, rounds=config.rounds).items():
        interval = median_interval(seconds)
        metrics[name].append(
            Metric(
                "images_per_second",
                config.batch_size / median(seconds),
                count=config.batch_size * config.rounds,
                interval=interval and (config.batch_size / interval[1], config.batch_size / interval[0]),
                tags={"precision": precision},
            )
        )
    return metrics


def _operation_metrics(backbone: Backbone, size: tuple[int, int]) -> Iterator[Metric]:
    cost = compute_backbone_cost(backbone, size)
    yield Metric("parameters", cost.parameters, count=1)
    yield from (Metric("parameters", part.parameters, 1, tags={"part": name}) for name, part in cost.part_costs.items())
    yield Metric("flops", cost.flops, count=1)
    yield from (Metric("flops", part.flops, 1, tags={"part": name}) for name, part in cost.part_costs.items())


def _memory_metrics(
    backbone: Backbone, size: tuple[int, int], config: CostEvaluation, device: torch.device
) -> Iterator[Metric]:
    one, two, three = (_random_images(backbone, batch, size, device) for batch in (1, 2, 3))
    for precision in config.precisions:
        # The difference leaves out bf16's copies of the weights, which do not grow with the batch, and what torch does
        # otherwise for a batch of one.
        bytes_of_three, bytes_of_two = (
            saved_tensor_bytes(backbone, partial(_forward, backbone, photos, precision)) for photos in (three, two)
        )
        tags = {"precision": precision}
        yield Metric("activation_bytes", bytes_of_three - bytes_of_two, 1, tags=tags)
        forward = partial(_forward_without_grad, backbone, one, precision)
        yield Metric("forward_bytes", peak_bytes(forward, device), 1, tags=tags)


def _random_images(backbone: Backbone, batch_size: int, size: tuple[int, int], device: torch.device) -> Tensor:
    shape = (batch_size, backbone.spec.channels["rgb"], *size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)


def _forward(backbone: Backbone, images: Tensor, precision: Precision) -> Tensor:
    with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
        return backbone.pooled(images)


@torch.no_grad()
def _forward_without_grad(backbone: Backbone, images: Tensor, precision: Precision) -> Tensor:
    return _forward(backbone, images, precision)
