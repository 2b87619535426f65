"""Evaluations that look at some photos of a source, image by image."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from pydantic import Field
from torch import Tensor

from c2fmae.core.config import Count
from c2fmae.core.scene import IGNORE, SceneBatch
from c2fmae.data import CentralView, Scenes, open_scenes
from c2fmae.data.config import Source
from c2fmae.data.digest import scenes_digest
from c2fmae.eval.evaluation import Evaluation, Metric, Subject
from c2fmae.eval.probes.intervals import NORMAL_95


class SampledEvaluation(Evaluation):
    """Which photos are looked at, and how they are cut."""

    data: Source = "generated"
    """A folder, shards, a pattern of shards, or `generated`."""
    options: dict[str, Any] = Field({})
    """Of `generated`: size, length, seed, difficulty."""
    images: Count = 256
    """At most so many, spread evenly over the data."""
    image_size: tuple[Count, Count] | None = None
    """Height and width; those that the backbone learned from, unless given."""
    batch_size: Count = 32

    def inputs(self, subject: Subject) -> dict[str, str]:
        """Name the scenes."""
        return {"data": scenes_digest(self._open(subject), f"{self.data}{sorted(self.options.items())}")}

    def size(self, subject: Subject) -> tuple[int, int]:
        """Return the photos' height and width."""
        return self.image_size or subject.backbone.spec.image_size

    def num_images(self, subject: Subject) -> int:
        """Return how many photos are looked at."""
        return min(self.images, len(self._open(subject)))

    def measure(
        self,
        subject: Subject,
        measure: Callable[[SceneBatch], Tensor],
        *,
        shape: tuple[int, ...],
        granularities: tuple[str, ...] | None = ("rgb",),
    ) -> Float64[Tensor, "image *values"]:
        """Return what is measured of each image, values of a shape, in every process the same to the last bit.

        Batches are the same for any number of processes, each of which takes whole ones and leaves the others' rows
        at zero: nothing is rounded where these are added up.
        """
        scenes, world = self._open(subject, granularities), subject.world
        view = CentralView(size=self.size(subject), max_instances=IGNORE)
        places = np.linspace(0, len(scenes), min(self.images, len(scenes)), endpoint=False).astype(int).tolist()
        values = torch.zeros(len(places), *shape, dtype=torch.float64, device=world.device)
        subject.backbone.to(world.device).eval()
        for number, first in enumerate(range(0, len(places), self.batch_size)):
            if number % world.size == world.rank:
                rows = slice(first, first + self.batch_size)
                batch = SceneBatch.stack([view(scenes[place]) for place in places[rows]])
                with torch.no_grad():
                    values[rows] = measure(batch.to(world.device)).double()
        return world.add(values).cpu()

    def _open(self, subject: Subject, granularities: tuple[str, ...] | None = None) -> Scenes:
        options = dict(self.options)
        if self.data == "generated":
            options = {"size": max(self.size(subject))} | options
        return open_scenes(self.data, granularities=granularities, **options)


def mean_of(name: str, values: Float64[Tensor, " image"]) -> Metric:
    """Return the mean of what was measured of images, with a normal interval; a single image has none.

    >>> mean_of("share", torch.tensor([0.5, 0.5], dtype=torch.float64)).interval
    (0.5, 0.5)
    """
    return _metric(name, values.mean().item(), values)


def ratio_of(name: str, values: Float64[Tensor, " image"], others: Float64[Tensor, " image"]) -> Metric:
    """Return the ratio of two means over the same images, with the normal interval of its first-order error.

    >>> values = torch.tensor([1.0, 3.0], dtype=torch.float64)
    >>> ratio_of("ratio", 2 * values, values).interval
    (2.0, 2.0)
    """
    ratio = (values.mean() / others.mean()).item()
    return _metric(name, ratio, (values - ratio * others) / others.mean())


def _metric(name: str, value: float, errors: Tensor) -> Metric:
    if len(errors) < 2:
        return Metric(name, value, len(errors))
    reach = NORMAL_95 * (errors.std() / len(errors) ** 0.5).item()
    return Metric(name, value, len(errors), (value - reach, value + reach))
