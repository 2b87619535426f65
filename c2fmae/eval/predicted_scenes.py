"""The images and id maps of an output directory of `c2fmae predict`, with which it is a data set.

OUT/rgb/KEY.*          the image: a link to it, or a copy
OUT/semantic/KEY.png   predicted ids, with a palette so that viewers show colours
OUT/dataset.json       the classes by id
"""

import io
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.core.files import write_atomic
from c2fmae.core.labels import ClassInfo
from c2fmae.data import DatasetInfo, Scenes
from c2fmae.data.folders import FolderScenes
from c2fmae.report.drawing import Colour


def check_output_keys(keys: Sequence[str]) -> None:
    """Raise a `UserError` for a key that would be written outside of the output directory."""
    for key in keys:
        path = PurePosixPath(key)
        if path.is_absolute() or ".." in path.parts:
            raise UserError(f"sample {key!r}: its key points outside the output directory. Rename it")


def describe_predicted_maps(
    source: DatasetInfo, granularities: tuple[str, ...], classes: tuple[ClassInfo, ...]
) -> DatasetInfo:
    """Return the content of dataset.json for maps that are predicted from the images of a source."""
    return DatasetInfo(
        name="predictions",
        granularities=granularities,
        classes=classes,
        labels=source.labels,
        maps_know_labels=False,  # predicted from the images alone
        channels=source.channels,
        value_range=source.value_range,
        mean=source.mean,
        std=source.std,
    )


def image_file_name(scenes: Scenes, row: int) -> str:
    """Return the path of an image in its folder; of other sources, its key with the suffix of a copy."""
    suffix = ".png"
    if isinstance(scenes, FolderScenes):
        suffix = Path(scenes.describe_location(row, "rgb")).suffix
    return f"{scenes.keys[row]}{suffix}"


def link_image(scenes: Scenes, row: int, image: UInt8[Tensor, "channels height width"], path: Path) -> None:
    """Link to an image, or copy it where that is not possible: from a shard, or to a file system without links."""
    if isinstance(scenes, FolderScenes):
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(OSError):
            path.unlink(missing_ok=True)  # a link to a file that was moved
            path.symlink_to(Path(scenes.describe_location(row, "rgb")).resolve())
            return
        write_atomic(path, scenes.read_image_bytes(row))
    else:
        pixels = image.permute(1, 2, 0).numpy()
        write_atomic(path, _encode_png(Image.fromarray(pixels[..., 0] if len(image) == 1 else pixels)))


def encode_coloured_ids(ids: UInt8[np.ndarray, "height width"], colour: Callable[[np.ndarray], np.ndarray]) -> bytes:
    """Encode ids as a PNG of palette indices, whose palette holds the colours of all ids."""
    image = Image.fromarray(ids, "L")
    image.putpalette([value for entry in list_colours(colour) for value in entry])
    return _encode_png(image)


def list_colours(colour: Callable[[np.ndarray], np.ndarray]) -> list[Colour]:
    """Return the colours of the ids 0 to 255 by a function that colours maps."""
    return [(red, green, blue) for red, green, blue in colour(np.arange(256)[None])[0].tolist()]


def _encode_png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()
