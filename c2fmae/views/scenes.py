"""Scenes for figures: opening, selecting and cropping them, and the generator of their masks."""

from collections.abc import Sequence

import torch

from c2fmae.config.data import DataSourceOption
from c2fmae.config.unseen_scenes import TEST_SEED_OFFSET, UnseenScenes, find_unseen_scenes
from c2fmae.core.granularity import IGNORE
from c2fmae.core.scene import Scene, SceneBatch
from c2fmae.core.seeding import derive_seed
from c2fmae.data import CentralView, Scenes, open_scenes
from c2fmae.data.loader import load_first_readable
from c2fmae.data.spacing import evenly_spaced_indices


def resolve_figure_source(data: DataSourceOption, *, size: int, seed: int, models: Sequence[str]) -> DataSourceOption:
    """Return the data for a figure of models, with the options of generated scenes.

    For runs, generated scenes are like those of their training, and `seed` counts from the first seed that they were
    not trained on.
    """
    unseen = find_unseen_scenes(models, {"data": data}) if models else None
    if unseen is not None:
        seed += unseen.seed + TEST_SEED_OFFSET
    return (unseen or UnseenScenes()).fill(data, size=size, seed=seed)


def open_figure_scenes(
    data: DataSourceOption,
    *,
    size: int,
    seed: int,
    granularities: Sequence[str] | None = None,
    models: Sequence[str] = (),
) -> Scenes:
    """Open data for a figure; `size` and `seed` are those of generated scenes."""
    return open_scenes(resolve_figure_source(data, size=size, seed=seed, models=models), granularities=granularities)


def load_evenly_spaced(scenes: Scenes, count: int) -> list[Scene]:
    """Return at most `count` scenes, evenly spaced over the data; the next readable one replaces a broken one."""
    indices = evenly_spaced_indices(len(scenes), count, centred=True)
    return [load_first_readable(scenes, index, []) for index in indices]


def crop_scenes(scenes: Sequence[Scene], size: tuple[int, int]) -> SceneBatch:
    """Return the central crops of scenes, resized to (height, width)."""
    view = CentralView(size=size, max_instances=IGNORE)
    return SceneBatch.stack([view(scene) for scene in scenes])


def mask_generator(seed: int) -> torch.Generator:
    """Return the generator of the masks of a figure."""
    return torch.Generator().manual_seed(derive_seed(seed, "masks", 0))
