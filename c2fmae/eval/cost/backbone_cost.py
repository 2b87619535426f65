"""Cost of a backbone: parameters and operations of one image's forward pass, memory and speed."""

from collections.abc import Iterator, Mapping
from functools import partial
from statistics import median
from typing import TypeVar

import torch
from torch import Tensor

from c2fmae.core.errors import UserError, check_patch_multiples
from c2fmae.core.operation_count import (
    ForwardCost,
    OperationCounter,
    PartCost,
    count_parameters,
    count_with_fvcore,
    count_with_torch,
)
from c2fmae.eval.cost.config import CostEvaluation
from c2fmae.eval.cost.speed_and_memory import (
    compute_median_interval,
    make_synchronous,
    measure_peak_bytes,
    measure_saved_bytes,
    time_in_turn,
)
from c2fmae.eval.evaluation import Precision
from c2fmae.eval.metrics import Metric
from c2fmae.models.backbones import Backbone
from c2fmae.models.backbones.backbone import vit_from_spec, wrap_vit

K = TypeVar("K")


def compute_backbone_cost(
    backbone: Backbone, image_size: tuple[int, int] | None = None, *, counter: OperationCounter = count_with_torch
) -> ForwardCost:
    """Return the cost of one image, counted on the meta device; `image_size` defaults to the backbone's.

    A norm after the pooling is part of the encoder. Embeddings of label maps count as parameters, but have no
    operations.
    """
    size = resolve_cost_image_size(backbone, image_size)
    with torch.device("meta"):
        meta_backbone = wrap_vit(vit_from_spec(backbone.spec), backbone.spec)
        flops = counter(meta_backbone, {"rgb": torch.zeros(1, meta_backbone.spec.channels["rgb"], *size)})
    return ForwardCost(
        {
            "embeddings": PartCost(flops["embeddings"], count_parameters(meta_backbone.embeddings)),
            "encoder": PartCost(
                flops["encoder"], count_parameters(meta_backbone.encoder) + count_parameters(meta_backbone.fc_norm)
            ),
        }
    )


def resolve_cost_image_size(backbone: Backbone, image_size: tuple[int, int] | None = None) -> tuple[int, int]:
    """Return the height and width of images: those of the backbone's training, unless given."""
    if "rgb" not in backbone.granularities:
        granularities = ", ".join(backbone.granularities)
        raise UserError(
            f"cost: only backbones that take images can be measured (expected a granularity 'rgb', got {granularities})"
            ". Measure a backbone that was trained on images"
        )
    size = image_size or backbone.spec.image_size
    check_patch_multiples(size, backbone.patch, "of this backbone")
    return size


def measure_backbones(
    backbones: Mapping[K, Backbone], config: CostEvaluation, device: torch.device | None = None
) -> dict[K, list[Metric]]:
    """Return the metrics of each backbone; their forward passes are timed in turn."""
    device = device or torch.device("cpu")
    metrics, forward_passes = {}, {}
    for name, backbone in backbones.items():
        size = resolve_cost_image_size(backbone, config.image_size)
        backbone.to(device)
        metrics[name] = [
            *_make_operation_metrics(backbone, size, config),
            *_measure_memory(backbone, size, config, device),
        ]
        images = _draw_images(backbone, config.batch_size, size, device)
        for precision in config.precisions:
            forward_passes[name, precision] = make_synchronous(
                partial(_forward_without_grad, backbone, images, precision), device
            )
    for (name, precision), seconds in time_in_turn(forward_passes, rounds=config.rounds).items():
        interval = compute_median_interval(seconds)
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


def _make_operation_metrics(backbone: Backbone, size: tuple[int, int], config: CostEvaluation) -> Iterator[Metric]:
    cost = compute_backbone_cost(backbone, size)
    yield Metric("parameters", cost.parameters, count=1)
    yield from (Metric("parameters", part.parameters, 1, tags={"part": name}) for name, part in cost.part_costs.items())
    yield Metric("flops", cost.flops, count=1)
    yield from (Metric("flops", part.flops, 1, tags={"part": name}) for name, part in cost.part_costs.items())
    if config.check:
        checked = compute_backbone_cost(backbone, size, counter=count_with_fvcore)
        yield Metric("flops", checked.flops, 1, tags={"counter": "fvcore"})


def _measure_memory(
    backbone: Backbone, size: tuple[int, int], config: CostEvaluation, device: torch.device
) -> Iterator[Metric]:
    one, two, three = (_draw_images(backbone, batch_size, size, device) for batch_size in (1, 2, 3))
    for precision in config.precisions:
        # The difference between two batches excludes bf16 copies of the weights, which do not grow with the batch.
        # Neither batch is of one image, for which torch chooses other kernels.
        bytes_of_three, bytes_of_two = (
            measure_saved_bytes(backbone, partial(_forward, backbone, images, precision)) for images in (three, two)
        )
        tags = {"precision": precision}
        yield Metric("activation_bytes", bytes_of_three - bytes_of_two, 1, tags=tags)
        forward = partial(_forward_without_grad, backbone, one, precision)
        yield Metric("forward_bytes", measure_peak_bytes(forward, device), 1, tags=tags)


def _draw_images(backbone: Backbone, batch_size: int, size: tuple[int, int], device: torch.device) -> Tensor:
    shape = (batch_size, backbone.spec.channels["rgb"], *size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)


def _forward(backbone: Backbone, images: Tensor, precision: Precision) -> Tensor:
    with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
        return backbone.pooled(images)


@torch.no_grad()
def _forward_without_grad(backbone: Backbone, images: Tensor, precision: Precision) -> Tensor:
    return _forward(backbone, images, precision)
