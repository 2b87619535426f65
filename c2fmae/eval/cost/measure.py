"""Measurement of costs: parameters, operations, memory and time of backbones, and epochs of pre-training methods."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from statistics import median
from typing import TypeVar

import torch
from torch import Tensor

from c2fmae.core.operation_count import count_with_fvcore
from c2fmae.eval.cost.backbone import compute_backbone_cost, resolve_cost_image_size
from c2fmae.eval.cost.config import CostEvaluation
from c2fmae.eval.cost.epoch_cost import measure_epoch_costs
from c2fmae.eval.cost.memory import peak_bytes, saved_tensor_bytes
from c2fmae.eval.cost.timing import median_interval, synchronised, time_in_turn
from c2fmae.eval.evaluation import ModelUnderTest, Outcome, Precision
from c2fmae.eval.metrics import Metric
from c2fmae.models.backbones import Backbone

K = TypeVar("K")


def measure_costs(config: CostEvaluation, models: Sequence[ModelUnderTest]) -> Iterator[Outcome]:
    """Yield the cost of each model, with that of an epoch for pre-training methods.

    The main process measures while the others wait and leave it the machine.
    """
    world = models[0].world
    outcomes: list[Outcome] = world.broadcast_object(_measure(config, models, world.device) if world.is_main else None)
    yield from outcomes


def _measure(config: CostEvaluation, models: Sequence[ModelUnderTest], device: torch.device) -> list[Outcome]:
    metrics = measure_backbones(dict(enumerate(model.backbone for model in models)), config, device)
    methods = {index: model.method for index, model in enumerate(models) if model.method is not None}
    epochs = measure_epoch_costs(methods, device=device, batch_size=config.batch_size, rounds=config.rounds)
    return [Outcome(tuple(metrics[index]), epochs.get(index)) for index in range(len(models))]


def measure_backbones(
    backbones: Mapping[K, Backbone], config: CostEvaluation, device: torch.device | None = None
) -> dict[K, list[Metric]]:
    """Return the metrics of backbones by key. They take turns, so that ratios are fair."""
    device = device or torch.device("cpu")
    metrics, forward_passes = {}, {}
    for name, backbone in backbones.items():
        size = resolve_cost_image_size(backbone, config.image_size)
        backbone.to(device)
        metrics[name] = [*_operation_metrics(backbone, size, config), *_memory_metrics(backbone, size, config, device)]
        images = _random_images(backbone, config.batch_size, size, device)
        for precision in config.precisions:
            forward_passes[name, precision] = synchronised(
                partial(_forward_without_grad, backbone, images, precision), device
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


def _operation_metrics(backbone: Backbone, size: tuple[int, int], config: CostEvaluation) -> Iterator[Metric]:
    cost = compute_backbone_cost(backbone, size)
    yield Metric("parameters", cost.parameters, count=1)
    yield from (Metric("parameters", part.parameters, 1, tags={"part": name}) for name, part in cost.part_costs.items())
    yield Metric("flops", cost.flops, count=1)
    yield from (Metric("flops", part.flops, 1, tags={"part": name}) for name, part in cost.part_costs.items())
    if config.check:
        checked = compute_backbone_cost(backbone, size, counter=count_with_fvcore)
        yield Metric("flops", checked.flops, 1, tags={"counter": "fvcore"})


def _memory_metrics(
    backbone: Backbone, size: tuple[int, int], config: CostEvaluation, device: torch.device
) -> Iterator[Metric]:
    one, two, three = (_random_images(backbone, batch, size, device) for batch in (1, 2, 3))
    for precision in config.precisions:
        # The difference leaves out bf16's copies of the weights, which do not grow with the batch, and what torch does
        # otherwise for a batch of one.
        bytes_of_three, bytes_of_two = (
            saved_tensor_bytes(backbone, partial(_forward, backbone, images, precision)) for images in (three, two)
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
