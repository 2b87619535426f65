"""Creation of a corruption set, like ImageNet-C, from any images; an interrupted run continues where it stopped.

The bytes of an image are a function of (seed, key, corruption, severity) and its pixels, independent of the number of
workers, of interruptions and of other images, so cells can be added to a set at any time.
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
from c2fmae.core.files import check_disk_space, write_atomic
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
from c2fmae.data.corruption.set_dir import CellKey, CorruptionSetDir, image_file_names
from c2fmae.data.encode import make_output_dir
from c2fmae.data.key_list import KeyList
from c2fmae.data.process_pool import run_in_processes
from c2fmae.data.scenes import Scenes, read_scene
from c2fmae.data.spacing import evenly_spaced_indices

_NUM_SAMPLED_FOR_SIZE = 8  # images from whose size the disk space is estimated
_BYTES_PER_PIXEL = 0.5  # 0.3 on average at 224 pixels, 0.45 at 64; 0.75 with noise
_BLOCK_SIZE = 4096  # minimum bytes of a file on the disk


class CorruptionConfig(Config):
    """Settings of a corruption set. Its images depend only on these settings and on the scenes."""

    image_size: Annotated[int, Field(ge=32)] | None = None
    """Images are first cropped to a square of this many pixels, 224 in ImageNet-C; None keeps their size."""
    quality: Annotated[int, Field(ge=1, le=100)] = 85
    """JPEG quality; 85 is that of ImageNet-C."""
    seed: int = 0


@dataclass(frozen=True)
class CorruptionReport:
    """Counts of a finished run."""

    num_images: int
    """Number of images in each cell."""
    num_written: int
    num_existing: int
    """Images that an earlier run had written."""
    num_bytes: int
    """Total size of the images that were written."""
    unfinished: tuple[CellKey, ...]
    """Cells that an earlier run started and no run finished."""


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
    """Write corrupted images of all scenes to `out`; call it again to finish an interrupted run or to add cells.

    `source` describes the scenes in `dataset.json`.
    """
    out, cells = Path(out), tuple((name, severity) for name in corruptions for severity in severities)
    if not len(scenes):
        raise UserError("there are no scenes to corrupt. Check the source")
    if "rgb" not in scenes.info.granularities:
        raise UserError("these scenes have no rgb images to corrupt. Add the granularity rgb")
    names, folders = image_file_names(scenes.keys), class_dir_names(scenes.info.labels)
    record = _build_record(scenes, config, source or scenes.info.name)
    set_dir = CorruptionSetDir(out, scenes.info.name, scenes.info.labels, record)
    make_output_dir(out)
    with lock_dir(
        out, busy_message=f"{out}: another process is writing into it. Wait for it, or choose another directory"
    ):
        previously_unfinished = set_dir.read_unfinished()
        present = set_dir.count_images(cells)
        missing = [index for index, name in enumerate(names) if present[name] < len(cells)]
        num_existing = sum(present[name] for name in names)
        _check_output_space(scenes, config, out, len(names) * len(cells) - num_existing)
        if missing:
            set_dir.write_metadata({*previously_unfinished, *cells})
        job = _Corrupter(scenes, set_dir, config, KeyList.from_names(names), tuple(folders), cells)
        num_written = num_bytes = 0
        with closing(run_in_processes(job, missing, workers)) as results:
            for size in results:
                # Existing images are reported with the first new one: the start-up of workers would distort the speed.
                progress(1 if num_written else num_existing + 1)
                num_written, num_bytes = num_written + 1, num_bytes + size
        still_unfinished = tuple(cell for cell in previously_unfinished if cell not in cells)
        set_dir.write_metadata(still_unfinished)
        return CorruptionReport(len(names), num_written, num_existing, num_bytes, still_unfinished)


def describe_source(source: str, scenes: Scenes) -> str:
    """Return the name of scenes for `dataset.json`: the name of their data set, and the last part of its path."""
    last_part = Path(source).resolve().name
    if not scenes.info.name or source == "generated":
        return scenes.info.name or last_part
    return f"{scenes.info.name} ({last_part})"


@dataclass(frozen=True)
class _Corrupter:
    """The task of a worker process: write the missing images of a scene, and yield the size of each in bytes."""

    scenes: Scenes
    set_dir: CorruptionSetDir
    config: CorruptionConfig
    file_names: KeyList
    class_dirs: tuple[str, ...]
    """Directory names by label."""
    cells: tuple[CellKey, ...]

    def __call__(self, index: int) -> Iterator[int]:
        scene = read_scene(self.scenes, index, purpose="corrupt")
        key, name, label = self.scenes.keys[index], self.file_names[index], scene.label
        class_dir = "" if label is None else self.class_dirs[label] if self.class_dirs else str(label)
        image = _prepare_image(scene, self.config)
        for cell in self.cells:
            path = self.set_dir.image_path(cell, class_dir, name)
            if path.exists():
                continue
            try:
                corrupted = corrupt_image(image, *cell, corruption_seed(self.config.seed, key, *cell))
            except UserError as error:
                raise UserError(f"sample {key!r}: {error}") from error
            data = encode_jpeg(corrupted, self.config.quality)
            write_atomic(path, data, is_shared=True)  # a worker of a killed run may still write the same file
            yield len(data)


def _prepare_image(scene: Scene, config: CorruptionConfig) -> UInt8[Tensor, "3 height width"]:
    """Return the image of a scene before corruption."""
    image = to_rgb(scene.maps["rgb"])
    return image if config.image_size is None else centre_crop(image, config.image_size)


def _build_record(scenes: Scenes, config: CorruptionConfig, source: str) -> CreationRecord:
    """Return the record of a set. Scenes are identified by their keys and the first image."""
    first = scenes.read_image_bytes(0) or read_scene(scenes, 0, purpose="corrupt").maps["rgb"].numpy().tobytes()
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
    """Raise an error if the disk is too small, estimated from a few images; none is read if no file is missing."""
    if not num_files:
        return
    indices = evenly_spaced_indices(len(scenes), _NUM_SAMPLED_FOR_SIZE)
    images = [_prepare_image(read_scene(scenes, index, purpose="corrupt"), config) for index in indices]
    blocks = [-(-_BYTES_PER_PIXEL * image.shape[1] * image.shape[2] // _BLOCK_SIZE) for image in images]
    needed = round(num_files * _BLOCK_SIZE * sum(blocks) / len(blocks))
    check_disk_space(
        out,
        num_bytes=needed,
        purpose=f"{num_files} images",
        alternative="create fewer with --limit, --only or --severity",
    )
