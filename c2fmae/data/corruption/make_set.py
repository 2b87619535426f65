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

from jaxtyping import UInt8
from pydantic import Field
from torch import Tensor

from c2fmae import __version__
from c2fmae.core.config import Config
from c2fmae.core.errors import UserError
from c2fmae.core.files import check_disk_space
from c2fmae.core.locks import lock_dir
from c2fmae.core.scene import Scene
from c2fmae.data.class_dirs import class_dir_names
from c2fmae.data.corruption.apply import (
    centre_crop,
    corrupt_image,
    corruption_seed,
    corruption_tool_version,
    encode_jpeg,
    to_rgb,
)
from c2fmae.data.corruption.creation_record import CreationRecord
from c2fmae.data.corruption.names import CENTRE_CROP_RATIO, CORRUPTIONS, SEVERITIES
from c2fmae.data.corruption.set_dir import CellKey, CorruptionSetDir, image_file_names, write_file
from c2fmae.data.encode import make_output_dir
from c2fmae.data.key_list import KeyList
from c2fmae.data.process_pool import run_in_processes
from c2fmae.data.scenes import Scenes
from c2fmae.data.spacing import evenly_spaced_indices

_NUM_SAMPLED_FOR_SIZE = 8  # photos whose size tells how much room is needed
_BYTES_PER_PIXEL = 0.5  # 0.3 on average at 224 pixels, 0.45 at 64; 0.75 with noise
_BLOCK_SIZE = 4096  # bytes: no file takes less


class CorruptionConfig(Config):
    """What the bytes of a corrupted set depend on, besides its scenes."""

    image_size: Annotated[int, Field(ge=32)] | None = None
    """Photos are first cut to a square of so many pixels, as those of ImageNet-C to 224; else they stay as they are."""
    quality: Annotated[int, Field(ge=1, le=100)] = 85
    """Of the JPEGs: that of ImageNet-C."""
    seed: int = 0


@dataclass(frozen=True)
class CorruptionReport:
    """What corrupting came to."""

    num_images: int
    """Of one cell."""
    num_written: int
    num_existing: int
    """Made by an earlier run."""
    num_bytes: int
    """Of those that were made."""
    unfinished: tuple[CellKey, ...]
    """Cells that an earlier run began and nobody finished."""


def corrupt_scenes(
    scenes: Scenes,
    out: str | Path,
    config: CorruptionConfig,
    *,
    corruptions: Sequence[str] = CORRUPTIONS,
    severities: Sequence[int] = SEVERITIES,
    source: str = "",
    workers: int = 1,
    progress: Callable[[int], None] = lambda _: None,
) -> CorruptionReport:
    """Write the photos of all scenes, corrupted, to `out`; run it again to finish what was interrupted, or to add.

    `source` is what `dataset.json` calls the scenes.
    """
    out, cells = Path(out), tuple((name, severity) for name in corruptions for severity in severities)
    if not len(scenes):
        raise UserError("there are no scenes to corrupt")
    if "rgb" not in scenes.info.granularities:
        raise UserError("these scenes have no photos to corrupt. Add rgb")
    names, folders = image_file_names(scenes.keys), class_dir_names(scenes.info.labels)
    record = _build_record(scenes, config, source or scenes.info.name)
    corrupted = CorruptionSetDir(out, scenes.info.name, scenes.info.labels, record)
    make_output_dir(out)
    with lock_dir(
        out, busy_message=f"{out}: another process is corrupting into it. Wait for it, or give another folder"
    ):
        previously_unfinished = corrupted.read_unfinished()
        present = corrupted.count_images(cells)
        missing = [index for index, name in enumerate(names) if present[name] < len(cells)]
        num_kept = sum(present[name] for name in names)
        _check_output_space(scenes, config, out, len(names) * len(cells) - num_kept)
        if missing:
            corrupted.write_metadata({*previously_unfinished, *cells})
        job = _Corrupter(scenes, corrupted, config, KeyList.from_names(names), tuple(folders), cells)
        num_made = num_bytes = 0
        with closing(run_in_processes(job, missing, workers)) as results:
            for size in results:
                # Those that were there are told with the first, so that the start of processes counts in no speed.
                progress(1 if num_made else num_kept + 1)
                num_made, num_bytes = num_made + 1, num_bytes + size
        still_unfinished = tuple(cell for cell in previously_unfinished if cell not in cells)
        corrupted.write_metadata(still_unfinished)
        return CorruptionReport(len(names), num_made, num_kept, num_bytes, still_unfinished)


def describe_source(source: str, scenes: Scenes) -> str:
    """Return the name of scenes for `dataset.json`: their data set's, with the last part of the path they come from."""
    last_part = Path(source).resolve().name
    if not scenes.info.name or source == "generated":
        return scenes.info.name or last_part
    return f"{scenes.info.name} ({last_part})"


@dataclass(frozen=True)
class _Corrupter:
    """What a worker knows; given a place it makes what is missing of that scene and says how many bytes each has."""

    scenes: Scenes
    set_dir: CorruptionSetDir
    config: CorruptionConfig
    file_names: KeyList
    class_dirs: tuple[str, ...]
    """By label."""
    cells: tuple[CellKey, ...]

    def __call__(self, index: int) -> Iterator[int]:
        scene = _read_scene(self.scenes, index)
        key, name, label = self.scenes.keys[index], self.file_names[index], scene.label
        folder = "" if label is None else self.class_dirs[label] if self.class_dirs else str(label)
        image = _prepare_image(scene, self.config)
        for cell in self.cells:
            path = self.set_dir.image_path(cell, folder, name)
            if path.exists():
                continue
            try:
                corrupted = corrupt_image(image, *cell, corruption_seed(self.config.seed, key, *cell))
            except UserError as error:
                raise UserError(f"sample {key!r}: {error}") from error
            data = encode_jpeg(corrupted, self.config.quality)
            write_file(path, data)
            yield len(data)


def _read_scene(scenes: Scenes, index: int) -> Scene:
    try:
        return scenes[index]
    except UserError as error:
        raise UserError(
            f"{error}\nTo corrupt the others: `c2fmae data check SOURCE --fix-list good.txt` lists all that is broken,"
            " then add `--keys good.txt` here"
        ) from error


def _prepare_image(scene: Scene, config: CorruptionConfig) -> UInt8[Tensor, "3 height width"]:
    """Return a photo as it is before it is corrupted."""
    image = to_rgb(scene.maps["rgb"])
    return image if config.image_size is None else centre_crop(image, config.image_size)


def _build_record(scenes: Scenes, config: CorruptionConfig, source: str) -> CreationRecord:
    """Return what a set's images depend on; scenes are identified by their keys and the first image."""
    first = scenes.read_image_bytes(0) or _read_scene(scenes, 0).maps["rgb"].numpy().tobytes()
    size = config.image_size
    return CreationRecord(
        made_by=f"c2fmae {__version__}",
        tool=corruption_tool_version(),
        source=source,
        samples=len(scenes),
        size=(size, size) if size else None,
        crop=CENTRE_CROP_RATIO if size else None,
        quality=config.quality,
        seed=config.seed,
        keys=_digest("\n".join(scenes.keys).encode(errors="surrogateescape")),
        first_image=_digest(first),
    )


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def _check_output_space(scenes: Scenes, config: CorruptionConfig, out: Path, num_files: int) -> None:
    """Refuse a disk that is too small, by the sizes of a few photos; where no file is missing none is looked at."""
    if not num_files:
        return
    indices = evenly_spaced_indices(len(scenes), _NUM_SAMPLED_FOR_SIZE)
    images = [_prepare_image(_read_scene(scenes, index), config) for index in indices]
    blocks = [-(-_BYTES_PER_PIXEL * image.shape[1] * image.shape[2] // _BLOCK_SIZE) for image in images]
    needed = round(num_files * _BLOCK_SIZE * sum(blocks) / len(blocks))
    check_disk_space(
        out,
        num_bytes=needed,
        purpose=f"{num_files} photos",
        alternative="take fewer with --limit, --only or --severity",
    )
