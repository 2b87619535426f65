"""Training and test sets of evaluations."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from c2fmae.config.data import DatasetConfig, DataSourceOption, describe_source, source_name
from c2fmae.config.unseen_scenes import TEST_SEED_OFFSET, TRAIN_SEED_OFFSET, UnseenScenes
from c2fmae.core.errors import UserError
from c2fmae.core.seeding import derive_seed
from c2fmae.core.splits import TEST_NAMES, TRAIN_NAMES
from c2fmae.core.text import format_count
from c2fmae.data import Scenes, open_scenes
from c2fmae.data.combine import SubsetScenes, select_evenly
from c2fmae.data.digest import compute_scenes_digest
from c2fmae.data.objects import open_objects, select_with_objects

_GENERATED_LENGTH_AND_OFFSET = {"train": (2048, TRAIN_SEED_OFFSET), "test": (1024, TEST_SEED_OFFSET)}
"""The default number of generated scenes, and the offset of their seed."""


@dataclass(frozen=True)
class OpenedSet:
    """A set of scenes, its name in protocols, and a digest that identifies it."""

    scenes: Scenes
    name: str
    identity: str

    def __str__(self) -> str:
        return f"{self.name} ({len(self.scenes):,})"


def open_set(
    split: Literal["train", "test"],
    source: DataSourceOption | None,
    size: tuple[int, int],
    granularities: tuple[str, ...],
    unseen: UnseenScenes | None = None,
    *,
    limit: int | None = None,
) -> OpenedSet:
    """Open the training or the test set, or at most `limit` evenly spaced scenes of it.

    `unseen` are the generated scenes that `generated` stands for.
    """
    source = _fill_source(split, source, size, unseen)
    scenes = _open(split, source, partial(open_scenes, granularities=granularities))
    return _limit(scenes, describe_source(source), source, limit)


def open_object_set(
    split: Literal["train", "test"],
    source: DataSourceOption | None,
    size: tuple[int, int],
    *,
    masks: bool,
    limit: int | None = None,
) -> OpenedSet:
    """Open the training or the test set with objects, or at most `limit` evenly spaced images of it.

    The training set has no images that are known to have no objects. `masks` of False reads boxes only. `size` is that
    of generated images.
    """
    source = _fill_source(split, source, size)
    scenes, name = _open(split, source, partial(open_objects, masks=masks)), describe_source(source)
    if split == "train":
        total, scenes = len(scenes), select_with_objects(scenes)
        if not len(scenes):
            raise UserError(
                f"{split}: none of the {total:,} images of {name} has an object. Check it: c2fmae data check"
            )
        if len(scenes) < total:
            name = f"{name}, {format_count(total - len(scenes), 'image')} without objects left out"
    return _limit(scenes, name, source, limit)


def _fill_source(
    split: Literal["train", "test"],
    source: DataSourceOption | None,
    size: tuple[int, int],
    unseen: UnseenScenes | None = None,
) -> DataSourceOption:
    if source is None:
        raise UserError(f"{split}: is required. Use --data with a folder of {TRAIN_NAMES[0]} and {TEST_NAMES[0]} sets")
    return fill_generated_set(split, source, unseen, size=max(size))


def _open(split: str, source: DataSourceOption, open_source: Callable[[DataSourceOption], Scenes]) -> Scenes:
    try:
        return open_source(source)
    except UserError as error:
        raise UserError(f"{split}: {error}") from error


def _limit(scenes: Scenes, name: str, source: DataSourceOption, limit: int | None) -> OpenedSet:
    """Return a set of at most `limit` evenly spaced scenes."""
    if limit is not None and limit < len(scenes):
        name = f"{name}, {limit:,} evenly spaced of {len(scenes):,}"
        scenes = select_evenly(scenes, limit)
    options = source.given_options() if isinstance(source, DatasetConfig) else {}
    identity = compute_scenes_digest(scenes, f"{source_name(source)}{sorted(options.items())}")
    return OpenedSet(scenes, name, identity)


def fill_generated_set(
    split: Literal["train", "test"], source: DataSourceOption, unseen: UnseenScenes | None = None, **defaults: Any
) -> DataSourceOption:
    """Return a source in which generated scenes have the length and seed of the training or the test set."""
    unseen = unseen or UnseenScenes()
    length, offset = _GENERATED_LENGTH_AND_OFFSET[split]
    return unseen.fill(source, length=length, seed=unseen.seed + offset, **defaults)


def check_same_names(
    sets: tuple[OpenedSet, OpenedSet], field: Literal["label_names", "class_names", "object_class_names"]
) -> tuple[str, ...]:
    """Return the names of labels, of semantic classes or of classes of objects, which must be the same in both sets."""
    train, test = (getattr(opened.scenes.info, field) for opened in sets)
    if train != test:
        kind = "labels" if field == "label_names" else "classes"
        unmatched = [*(name for name in test if name not in train), *(name for name in train if name not in test)]
        first_difference = next(iter(unmatched), "order")
        is_object = field == "object_class_names"
        fix = "Use sets with the same classes" if is_object else "Give both the same names in their dataset.json"
        raise UserError(
            f"test: {sets[1].name} has other {kind} than {sets[0].name}: {len(test)} and {len(train)}, and they "
            f"differ in {first_difference!r}. {fix}"
        )
    return tuple(train)


def draw_stratified_rows(labels: Int64[Tensor, " scene"], fraction: float, seed: int) -> Int64[Tensor, " row"]:
    """Return sorted indices of rows with a fraction of each label's rows, rounded up.

    >>> draw_stratified_rows(torch.tensor([0, 1, 0, 1, 0, 1, 1]), 0.5, seed=0).shape
    torch.Size([4])
    """
    noise = torch.rand(len(labels), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    order = (labels + noise).argsort()  # by label, then by noise
    counts = labels.bincount()
    rank_in_label = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels[order]]
    num_rows = (fraction * counts.double() - 1e-9).ceil()  # 0.15 × 100 is 15 in spite of rounding
    return order[rank_in_label < num_rows[labels[order]]].sort().values


def select_fraction(scenes: Scenes, fraction: float, seed: int) -> Scenes:
    """Return a random fraction of scenes, in their order; larger fractions of a seed contain smaller ones."""
    if fraction == 1:
        return scenes
    order = np.random.default_rng(derive_seed(seed, "fraction", 0)).permutation(len(scenes))
    return SubsetScenes(scenes, np.sort(order[: count_fraction(len(scenes), fraction)]))


def count_fraction(num_scenes: int, fraction: float) -> int:
    """Return the number of scenes that are a fraction of all, rounded up.

    >>> count_fraction(100, 0.15), count_fraction(3, 0.5)
    (15, 2)
    """
    return ceil(fraction * num_scenes - 1e-9)  # 0.15 × 100 is 15 in spite of rounding
