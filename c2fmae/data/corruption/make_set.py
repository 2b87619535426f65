"""A set in the manner of ImageNet-C of any photos; one whose making was interrupted goes on where it stopped.

A photo's bytes are a function of (seed, key, corruption, severity) and its pixels: not of how the work was divided, how
often it was interrupted, or what else was made with it. So cells can be added to a set at any time.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from jaxtyping import UInt8
from pydantic import Field
from torch import Tensor

from c2fmae import __version__
from c2fmae.core.config import Config
from c2fmae.core.errors import UserError
from c2fmae.core.locks import locked
from c2fmae.core.run_dir import check_room
from c2fmae.core.scene import Scene
from c2fmae.data.combine import SelectedScenes
from c2fmae.data.corruption.apply import (
    as_colours,
    centre_of,
    corrupt_photo,
    corruption_seed,
    encode_corrupted,
    tool_name,
)
from c2fmae.data.corruption.names import CORRUPTIONS, CROP, SEVERITIES
from c2fmae.data.corruption.set_dir import CorruptedSet, Where, class_folders, photo_names, write
from c2fmae.data.encode import make_folder
from c2fmae.data.key_list import KeyList
from c2fmae.data.process_pool import run_in_processes
from c2fmae.data.scenes import Scenes

_LOOKED_AT = 8  # photos whose size tells how much room is needed
_BYTES_PER_PIXEL = 0.5  # 0.3 on average at 224 pixels, 0.45 at 64; 0.75 with noise
_BLOCK = 4096  # bytes: no file takes less


class CorruptConfig(Config):
    """What the bytes of a corrupted set depend on, besides its scenes."""

    image_size: Annotated[int, Field(ge=32)] | None = None
    """Photos are first cut to a square of so many pixels, as those of ImageNet-C to 224; else they stay as they are."""
    quality: Annotated[int, Field(ge=1, le=100)] = 85
    """Of the JPEGs: that of ImageNet-C."""
    seed: int = 0


@dataclass(frozen=True)
class CorruptReport:
    """What corrupting came to."""

    num_photos: int
    """Of one cell."""
    num_made: int
    num_kept: int
    """Made by an earlier run."""
    num_bytes: int
    """Of those that were made."""
    unfinished: tuple[Where, ...]
    """Cells that an earlier run began and nobody finished."""


def corrupt_scenes(
    scenes: Scenes,
    out: str | Path,
    config: CorruptConfig,
    *,
    corruptions: Sequence[str] = CORRUPTIONS,
    severities: Sequence[int] = SEVERITIES,
    source: str = "",
    workers: int = 1,
    progress: Callable[[int], None] = lambda _: None,
) -> CorruptReport:
    """Write the photos of all scenes, corrupted, to `out`; run it again to finish what was interrupted, or to add.

    `source` is what `dataset.json` calls the scenes.
    """
    out, cells = Path(out), tuple((name, severity) for name in corruptions for severity in severities)
    if not len(scenes):
        raise UserError("there are no scenes to corrupt")
    if "rgb" not in scenes.info.granularities:
        raise UserError("these scenes have no photos to corrupt. Add rgb")
    names, folders = photo_names(scenes.keys), class_folders(scenes.info.labels)
    made = _made_by(scenes, config, source or scenes.info.name)
    corrupted = CorruptedSet(out, scenes.info.name, scenes.info.labels, made)
    make_folder(out)
    with locked(out, or_say=f"{out}: another process is corrupting into it. Wait for it, or give another folder"):
        before = corrupted.unfinished()
        present = corrupted.present(cells)
        missing = [index for index, name in enumerate(names) if present[name] < len(cells)]
        num_kept = sum(present[name] for name in names)
        _check_room(scenes, config, out, len(names) * len(cells) - num_kept)
        if missing:
            corrupted.say({*before, *cells})
        job = _Corrupter(scenes, corrupted, config, KeyList.of(names), tuple(folders), cells)
        num_made = num_bytes = 0
        with closing(run_in_processes(job, missing, workers)) as results:
            for size in results:
                # Those that were there are told with the first, so that the start of processes counts in no speed.
                progress(1 if num_made else num_kept + 1)
                num_made, num_bytes = num_made + 1, num_bytes + size
        left = tuple(where for where in before if where not in cells)
        corrupted.say(left)
        return CorruptReport(len(names), num_made, num_kept, num_bytes, left)


def spread_scenes(scenes: Scenes, count: int) -> Scenes:
    """Return at most so many scenes, spread evenly over a source."""
    count = min(count, len(scenes))
    return SelectedScenes(scenes, (2 * np.arange(count) + 1) * len(scenes) // (2 * count))


@dataclass(frozen=True)
class _Corrupter:
    """What a worker knows; given a place it makes what is missing of that scene and says how many bytes each has."""

    scenes: Scenes
    out: CorruptedSet
    config: CorruptConfig
    names: KeyList
    folders: tuple[str, ...]
    """By label."""
    cells: tuple[Where, ...]

    def __call__(self, index: int) -> Iterator[int]:
        scene = _read(self.scenes, index)
        key, name, label = self.scenes.keys[index], self.names[index], scene.label
        folder = "" if label is None else self.folders[label] if self.folders else str(label)
        photo = _taken(scene, self.config)
        for where in self.cells:
            path = self.out.photo(where, folder, name)
            if path.exists():
                continue
            try:
                spoilt = corrupt_photo(photo, *where, corruption_seed(self.config.seed, key, *where))
            except UserError as error:
                raise UserError(f"sample {key!r}: {error}") from error
            data = encode_corrupted(spoilt, self.config.quality)
            write(path, data)
            yield len(data)


def _read(scenes: Scenes, index: int) -> Scene:
    try:
        return scenes[index]
    except UserError as error:
        raise UserError(
            f"{error}\nTo corrupt the others: `c2fmae data check SOURCE --fix-list good.txt` lists all that is broken,"
            " then add `--keys good.txt` here"
        ) from error


def _taken(scene: Scene, config: CorruptConfig) -> UInt8[Tensor, "3 height width"]:
    """Return a photo as it is before it is corrupted."""
    photo = as_colours(scene.maps["rgb"])
    return photo if config.image_size is None else centre_of(photo, config.image_size)


def _made_by(scenes: Scenes, config: CorruptConfig, source: str) -> dict[str, object]:
    """Return by what a set is made, with what tells these scenes from others: their keys, and one of them."""
    first = scenes.photo(0) or _read(scenes, 0).maps["rgb"].numpy().tobytes()
    size = config.image_size
    return {
        "made_by": f"c2fmae {__version__}",
        "tool": tool_name(),
        "source": source,
        "samples": len(scenes),
        "size": [size, size] if size else None,
        "crop": CROP if size else None,
        "quality": config.quality,
        "seed": config.seed,
        "keys": _digest("\n".join(scenes.keys).encode(errors="surrogateescape")),
        "first photo": _digest(first),
    }


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def _check_room(scenes: Scenes, config: CorruptConfig, out: Path, num_files: int) -> None:
    """Refuse a disk that is too small, by the sizes of a few photos; where no file is missing none is looked at."""
    if not num_files:
        return
    count = min(_LOOKED_AT, len(scenes))
    photos = [_taken(_read(scenes, i * len(scenes) // count), config) for i in range(count)]
    blocks = [-(-_BYTES_PER_PIXEL * photo.shape[1] * photo.shape[2] // _BLOCK) for photo in photos]
    needed = round(num_files * _BLOCK * sum(blocks) / count)
    check_room(out, needed=needed, what=f"{num_files} photos", or_do="take fewer with --limit, --only or --severity")
