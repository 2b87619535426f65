"""The evaluation `cost`: what a backbone takes, in parameters, operations, memory and time."""

from collections.abc import Iterator, Mapping
from functools import partial
from statistics import median
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from c2fmae.core.config import Count
from c2fmae.core.distributed import World
from c2fmae.core.environment import environment
from c2fmae.eval.cost.backbone_cost import backbone_cost, photo_size
from c2fmae.eval.cost.memory import kept_bytes, peak_bytes
from c2fmae.eval.cost.timing import WARM_UP, alternate, median_interval, to_the_end
from c2fmae.eval.evaluation import EVALUATIONS, Evaluation, Metric, Subject
from c2fmae.models.backbones import Backbone

Precision = Literal["fp32", "bf16"]


@EVALUATIONS.register("cost")
class CostEvaluation(Evaluation):
    """Parameters, operations with attention's, memory of activations, and speed here and now."""

    image_size: tuple[Count, Count] | None = None
    """Height and width of the photos; those that the backbone learned from, unless given."""
    batch_size: Count = 8
    """Photos that are timed together."""
    rounds: Count = 9
    """How many batches of each kind are timed; from 6 on there is an interval."""
    precisions: Annotated[tuple[Precision, ...], Field(min_length=1)] = ("fp32", "bf16")

    def run(self, subject: Subject) -> Iterator[Metric]:
        """Compute the metrics, in the first process, while the others wait and leave it the machine."""
        yield from compare_backbones({subject.name: subject.backbone}, self, subject.world)[subject.name]

    def protocol(self, subject: Subject) -> str:
        """Say what is counted and what is timed."""
        height, width = photo_size(subject.backbone, self.image_size)
        return (
            f"Of a photo of {height}×{width}. Parameters are what is learned: kept tables of positions are not. "
            "Operations are those of matrix products, attention's too; a multiplication and the addition behind it are "
            "two. Activations are the bytes that one more image makes a forward pass keep for the backward pass, "
            "without checkpointing; forward is the most that one image's pass holds at once where there is no backward "
            f"pass. Images per second are those of the median of {self.rounds} forward passes of {self.batch_size} "
            f"photos each, from standardised photos to pooled features, after {WARM_UP} of warm-up, all precisions and "
            "sources in turn; bf16 is autocast, which casts the weights in every pass. "
            f"Measured on {machine(subject.world.device)}."
        )

    def inputs(self, subject: Subject) -> dict[str, str]:
        """Name the machine: on another one, speed and memory are others."""
        return {"machine": machine(subject.world.device)}


def compare_backbones(
    backbones: Mapping[str, Backbone], settings: CostEvaluation, world: World | None = None
) -> dict[str, list[Metric]]:
    """Return every backbone's metrics, timed in turn with the others, so that ratios are fair."""
    world = world or World()
    return world.share(_measure(backbones, settings, world.device) if world.is_first else None)  # type: ignore[no-any-return]


def machine(device: torch.device) -> str:
    """Say what computes."""
    facts = environment()
    name = facts["torch"]["version"]
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {name}"
    threads = facts["torch"]["threads"]
    return f"{threads} thread{'s' * (threads > 1)} of {facts['cpu']}, torch {name}"


def _measure(
    backbones: Mapping[str, Backbone], settings: CostEvaluation, device: torch.device
) -> dict[str, list[Metric]]:
    metrics, passes = {}, {}
    for name, backbone in backbones.items():
        size = photo_size(backbone, settings.image_size)
        backbone.to(device)
        metrics[name] = [*_counted(backbone, size), *_held(backbone, size, settings, device)]
        photos = _noise(backbone, settings.batch_size, size, device)
        for precision in settings.precisions:
            passes[name, precision] = to_the_end(partial(_infer, backbone, photos, precision), device)
    for (name, precision), seconds in alternate(passes, rounds=settings.rounds).items():
        interval = median_interval(seconds)
        metrics[name].append(
            Metric(
                f"images_per_second/{precision}",
                settings.batch_size / median(seconds),
                count=settings.batch_size * settings.rounds,
                interval=interval and (settings.batch_size / interval[1], settings.batch_size / interval[0]),
            )
        )
    return metrics


def _counted(backbone: Backbone, size: tuple[int, int]) -> Iterator[Metric]:
    cost = backbone_cost(backbone, size)
    yield Metric("parameters", cost.parameters, count=1)
    yield from (Metric(f"parameters/{name}", part.parameters, count=1) for name, part in cost.parts.items())
    yield Metric("flops", cost.flops, count=1)
    yield from (Metric(f"flops/{name}", part.flops, count=1) for name, part in cost.parts.items())


def _held(
    backbone: Backbone, size: tuple[int, int], settings: CostEvaluation, device: torch.device
) -> Iterator[Metric]:
    one, two, three = (_noise(backbone, batch, size, device) for batch in (1, 2, 3))
    for precision in settings.precisions:
        # The difference leaves out bf16's copies of the weights, which do not grow with the batch, and what torch does
        # otherwise for a batch of one.
        more, less = (kept_bytes(backbone, partial(_run, backbone, photos, precision)) for photos in (three, two))
        yield Metric(f"activation_bytes/{precision}", more - less, count=1)
        yield Metric(
            f"forward_bytes/{precision}", peak_bytes(partial(_infer, backbone, one, precision), device), count=1
        )


def _noise(backbone: Backbone, batch: int, size: tuple[int, int], device: torch.device) -> Tensor:
    shape = (batch, backbone.spec.channels["rgb"], *size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)


def _run(backbone: Backbone, photos: Tensor, precision: Precision) -> Tensor:
    with torch.autocast(photos.device.type, torch.bfloat16, enabled=precision == "bf16"):
        return backbone.pooled(photos)


@torch.no_grad()
def _infer(backbone: Backbone, photos: Tensor, precision: Precision) -> Tensor:
    return _run(backbone, photos, precision)
