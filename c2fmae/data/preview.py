"""A contact sheet of a data set: photos, their maps, and what the colours mean."""

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image

from c2fmae.core.scene import IGNORE, Scene
from c2fmae.data.geometry import photo_size
from c2fmae.data.info import DatasetInfo
from c2fmae.data.scenes import Scenes
from c2fmae.report.drawing import PAPER, Colour, classes_in, colour_classes, colour_instances, legend, sheet

Tile = UInt8[np.ndarray, "height width 3"]
Ids = Integer[np.ndarray, "rows columns"]

_LONGEST = 40  # characters of a key: its end tells more than its beginning
_SIDE = 256  # pixels of the longer side of a picture on the sheet
_TITLES = {"rgb": "photo", "semantic": "semantic map", "instance": "instance map"}


def draw_preview(scenes: Scenes, num_scenes: int, *, title: str) -> Image.Image:
    """Draw scenes spread evenly over the source, a row each: photo, maps, and the classes in them, largest first."""
    num_scenes = min(num_scenes, len(scenes))
    shown = [scenes[(2 * i + 1) * len(scenes) // (2 * num_scenes)] for i in range(num_scenes)]
    sizes = [_fitted(*photo_size(scene)) for scene in shown]
    height, width = (max(sides) for sides in zip(*sizes, strict=True))
    names = [name for name in _TITLES if name in shown[0].maps]
    rows = []
    for scene, size in zip(shown, sizes, strict=True):
        tiles = [_framed(_picture(scene, name, size), height, width) for name in names]
        if "semantic" in names:
            tiles.append(legend(_classes(scene.maps["semantic"].numpy(), scenes.info), height, width))
        rows.append(tiles)
    stride = scenes.info.label_stride
    stored = f", maps stored at stride {stride}" if stride > 1 else ""
    return sheet(
        rows,
        column_titles=[*(_TITLES[name] for name in names), *(["classes"] if "semantic" in names else [])],
        row_titles=[_row_title(scene, scenes.info) for scene in shown],
        title=title,
        subtitle=f"{num_scenes} of {len(scenes)} scenes, evenly spread{stored}",
    )


def _fitted(height: int, width: int) -> tuple[int, int]:
    longer = max(height, width)
    return max(height * _SIDE // longer, 1), max(width * _SIDE // longer, 1)


def _picture(scene: Scene, name: str, size: tuple[int, int]) -> Tile:
    pixels = scene.maps[name].numpy()
    if name == "rgb":
        image = Image.fromarray(np.broadcast_to(pixels[:3], (3, *pixels.shape[1:])).transpose(1, 2, 0).copy())
        return np.asarray(image.resize(size[::-1], Image.Resampling.LANCZOS))
    height, width = photo_size(scene)
    # The middle of every pixel of the tile lies in a pixel of the photo, and that in a cell of the map.
    rows, columns = (
        (2 * np.arange(shown) + 1) * pixels_there // (2 * shown) // scene.label_stride
        for shown, pixels_there in zip(size, (height, width), strict=True)
    )
    ids = pixels[rows[:, None], columns]
    return colour_classes(ids) if name == "semantic" else colour_instances(_below_256(ids))


def _below_256(ids: Ids) -> Ids:
    """Let objects share colours where there are more than colours; 0 and "not labelled" stay."""
    folded: Ids = np.where(ids > IGNORE, ids % (IGNORE - 1) + 1, ids)
    return folded


def _framed(tile: Tile, height: int, width: int) -> Tile:
    framed = np.full((height, width, 3), PAPER, np.uint8)
    top, left = (height - tile.shape[0]) // 2, (width - tile.shape[1]) // 2
    framed[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    return framed


def _classes(ids: Ids, info: DatasetInfo) -> dict[str, Colour]:
    return {
        f"{name} {f'{share:.1%}' if share >= 0.001 else '< 0.1%'}": colour
        for name, share, colour in classes_in(ids, info.class_names)
    }


def _row_title(scene: Scene, info: DatasetInfo) -> str:
    key = scene.key if len(scene.key) <= _LONGEST else f"... {scene.key[4 - _LONGEST :]}"
    if scene.label is None:
        return key
    named = scene.label < len(info.labels)
    return f"{key}\n{info.label_names[scene.label] if named else f'label {scene.label}'}"
