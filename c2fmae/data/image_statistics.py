"""Channels, range of values, mean and deviation of images: the keys of `dataset.json` that describe pixels."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Num

from c2fmae.core.errors import UserError
from c2fmae.core.files import write_atomic
from c2fmae.core.json_file import read_json
from c2fmae.core.splits import find_splits
from c2fmae.data.arrays import count_channels, move_channels_last
from c2fmae.data.decode import decode_image, read_stored_image
from c2fmae.data.info import DATASET_FILE
from c2fmae.data.spacing import evenly_spaced_indices
from c2fmae.data.stored import StoredScenes

RANGE_PERCENTILES = (0.1, 99.9)
"""The percentiles of stored values that become 0 and 255: a few extreme pixels should not decide."""

_MAX_PIXELS_PER_IMAGE = 4096  # of which the percentiles are computed
_MEASURED_KEYS = frozenset({"channels", "value_range", "mean", "std"})


@dataclass(frozen=True)
class ImageStatistics:
    """Statistics of the images of a data set. Mean and deviation are of values in [0, 1], by channel."""

    num_images: int
    channels: int
    value_range: tuple[tuple[float, float], ...] | None
    """None for images of bytes, which are read as stored."""
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def to_info(self) -> dict[str, Any]:
        """Return the keys of `dataset.json`."""
        info = {"channels": self.channels, "mean": list(self.mean), "std": list(self.std)}
        return info if self.value_range is None else {**info, "value_range": [list(pair) for pair in self.value_range]}


def measure_images(scenes: StoredScenes, max_images: int = 1000) -> ImageStatistics:
    """Measure at most `max_images` images, evenly spaced; the data set's own description of its pixels is ignored."""
    if "rgb" not in scenes.info.granularities:
        raise UserError("the data has no images to measure. Give a folder of images, or one with the folder rgb")
    indices = evenly_spaced_indices(len(scenes), max_images, centred=True)
    locations = [scenes.describe_location(index, "rgb") for index in indices]
    arrays = (
        read_stored_image(scenes.read_image_bytes(index), location)
        for index, location in zip(indices, locations, strict=True)
    )
    samples, channels = list[Num[np.ndarray, "pixels channels"]](), 0
    for array, location in zip(arrays, locations, strict=True):
        count = count_channels(array.shape)
        if channels and count != channels and {count, channels} != {1, 3}:
            raise UserError(f"{location}: has {count} channels, but {locations[0]} has {channels}. Remove one of them")
        channels = max(channels, count)
        pixels = move_channels_last(array, count, location).reshape(-1, count)
        samples.append(pixels[:: -(-len(pixels) // _MAX_PIXELS_PER_IMAGE)])
    values = np.concatenate([sample.repeat(channels // sample.shape[1], axis=1) for sample in samples])
    value_range = None if all(sample.dtype == np.uint8 for sample in samples) else _measure_range(values, locations[0])
    sums, num_pixels = np.zeros((2, channels)), 0
    for index, location in zip(indices, locations, strict=True):
        image = decode_image(scenes.read_image_bytes(index), location, channels, value_range).flatten(1).numpy()
        scaled = image.astype(np.float32) / 255
        sums += np.stack([scaled.sum(axis=1, dtype=np.float64), np.square(scaled).sum(axis=1, dtype=np.float64)])
        num_pixels += image.shape[1]
    mean, square = sums / num_pixels
    std = np.sqrt((square - mean**2).clip(1e-6))  # a constant channel has a deviation, too, for the division by it
    return ImageStatistics(len(indices), channels, value_range, *(tuple(v.round(4).tolist()) for v in (mean, std)))


def _measure_range(values: Num[np.ndarray, "pixels channels"], location: str) -> tuple[tuple[float, float], ...]:
    finite = np.where(np.isfinite(values), values, np.nan).astype(np.float64)
    if np.isnan(finite).all(axis=0).any():
        raise UserError(f"{location}: a channel has no numbers (only NaN or infinities). Remove the channel")
    low, high = np.nanpercentile(finite, RANGE_PERCENTILES, axis=0)
    return tuple(_round_range(a, b) for a, b in zip(low.tolist(), high.tolist(), strict=True))


def _round_range(low: float, high: float) -> tuple[float, float]:
    """Return a range with few digits; if it is too narrow for them, as it is, or widened if it is empty."""
    rounded = float(f"{low:.6g}"), float(f"{high:.6g}")
    return rounded if rounded[0] < rounded[1] else (low, max(high, low + 1e-6 * max(abs(low), 1)))


def list_split_folders(folders: Sequence[Path]) -> list[Path]:
    """Return folders, and for one that holds train and val its folders of these, the one for training first."""
    splits = {folder: [Path(path) for path in find_splits(folder).values()] for folder in folders}
    return [
        path
        for folder in folders
        for path in (splits[folder] if splits[folder] and all(path.is_dir() for path in splits[folder]) else [folder])
    ]


def write_image_statistics(
    folders: Sequence[Path], statistics: ImageStatistics, *, overwrite: bool = False
) -> list[Path]:
    """Write the statistics into the `dataset.json` of each folder, whose other keys stay."""
    keys, documents = statistics.to_info(), dict[Path, dict[str, Any]]()
    for folder in folders:
        path = folder / DATASET_FILE
        existing: dict[str, Any] = read_json(path, fix="Fix or remove it") if path.exists() else {}
        for key, value in existing.items():
            if key in _MEASURED_KEYS and value != keys.get(key) and not overwrite:
                raise UserError(f"{path}: has {key} {value} already. Add --overwrite to replace it, or remove it")
        others = {key: value for key, value in existing.items() if key not in _MEASURED_KEYS}
        documents[path] = {**others, **keys}
    for path, document in documents.items():
        write_atomic(path, (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode())
    return list(documents)
