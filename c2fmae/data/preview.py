"""A contact sheet of a data set: images, their maps and objects, and a legend of the classes."""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Integer
from PIL import Image

from c2fmae.core.crop_box import CropBox
from c2fmae.core.granularity import IGNORE
from c2fmae.core.objects import Objects, resize_objects
from c2fmae.core.rle import decode_mask
from c2fmae.core.scene import Scene
from c2fmae.data.geometry import scene_size
from c2fmae.data.info import DatasetInfo
from c2fmae.data.scenes import Scenes
from c2fmae.data.spacing import evenly_spaced_indices
from c2fmae.report.drawing import (
    Colour,
    DrawnObject,
    Tile,
    colour_classes,
    colour_instances,
    draw_legend,
    draw_objects,
    draw_outlines,
    draw_tile_sheet,
    image_to_tile,
    list_class_fractions,
    pad_tile,
)

PreviewIds = Integer[np.ndarray, "rows columns"]

_MAX_KEY_LENGTH = 40  # characters; only the end of a longer key is shown
_TILE_SIDE = 256  # pixels of the longer side of a tile
_TITLES = {"rgb": "image", "semantic": "semantic map", "instance": "instance map"}


def draw_preview(scenes: Scenes, num_scenes: int, *, title: str) -> Image.Image:
    """Draw evenly spaced scenes, a row each: image, maps and objects, and the classes in them, largest first."""
    indices = evenly_spaced_indices(len(scenes), num_scenes, centred=True)
    stride = scenes.info.label_stride
    stored = f", maps stored at stride {stride}" if stride > 1 else ""
    return draw_scenes(
        (scenes[index] for index in indices),
        scenes.info,
        title=title,
        subtitle=f"{len(indices)} of {len(scenes)} scenes, evenly spread{stored}",
    )


def draw_scenes(
    scenes: Iterable[Scene],
    info: DatasetInfo,
    *,
    notes: Sequence[str] = (),
    title: str = "",
    subtitle: str = "",
    tile_side: int = _TILE_SIDE,
    has_outlines: bool = False,
) -> Image.Image:
    """Draw scenes, a row each: image, maps and objects, and the classes in them, largest first.

    Scenes are drawn one after the other, so large images are not in memory together. `notes` are lines below the titles
    of the rows. With `has_outlines`, the image is drawn once more with the outlines of the instance map.
    """
    rows = [_draw_row(scene, info, tile_side, has_outlines=has_outlines) for scene in scenes]
    tiles = [tile for _, row in rows for tile in row.values() if isinstance(tile, np.ndarray)]
    height, width = (max(tile.shape[axis] for tile in tiles) for axis in (0, 1))
    row_titles = [row_title for row_title, _ in rows]
    if notes:
        row_titles = [f"{row_title}\n{note}".rstrip() for row_title, note in zip(row_titles, notes, strict=True)]
    return draw_tile_sheet(
        [
            [
                pad_tile(tile, height, width) if isinstance(tile, np.ndarray) else draw_legend(tile, height, width)
                for tile in row.values()
            ]
            for _, row in rows
        ],
        column_titles=[*rows[0][1]],
        row_titles=row_titles,
        title=title,
        subtitle=subtitle,
    )


def _draw_row(
    scene: Scene, info: DatasetInfo, tile_side: int, *, has_outlines: bool
) -> tuple[str, dict[str, Tile | dict[str, Colour]]]:
    """Return the title of a scene's row, and its tiles and legends by the titles of their columns."""
    size = fit_tile_size(*scene_size(scene), tile_side)
    row: dict[str, Tile | dict[str, Colour]] = {
        title: draw_map_tile(scene, name, size) for name, title in _TITLES.items() if name in scene.maps
    }
    if has_outlines and {"rgb", "instance"} <= scene.maps.keys():
        row["outlines"] = draw_outlines(draw_map_tile(scene, "rgb", size), _tile_ids(scene, "instance", size))
    if scene.objects is not None:
        row["objects"] = _draw_objects(scene, scene.objects, size)
        row["classes of objects"] = _object_legend(scene.objects, info)
    if "semantic" in scene.maps:
        row["classes"] = _class_legend(scene.maps["semantic"].numpy(), info)
    return make_row_title(scene, info), row


def fit_tile_size(height: int, width: int, tile_side: int = _TILE_SIDE) -> tuple[int, int]:
    """Return the height and width of an image in a tile."""
    longer = max(height, width)
    return max(height * tile_side // longer, 1), max(width * tile_side // longer, 1)


def draw_map_tile(scene: Scene, name: str, size: tuple[int, int]) -> Tile:
    """Return the image or a map of a scene in its colours, resized."""
    if name == "rgb":
        image = Image.fromarray(image_to_tile(scene.maps["rgb"].numpy()))
        return np.asarray(image.resize(size[::-1], Image.Resampling.LANCZOS))
    ids = _tile_ids(scene, name, size)
    return colour_classes(ids) if name == "semantic" else colour_instances(ids)


def _tile_ids(scene: Scene, name: str, size: tuple[int, int]) -> PreviewIds:
    """Return the ids of a map at the pixels of a tile; above 255 they start again, as there are as many colours."""
    # The centre of a pixel of the tile is in a pixel of the image, which is in a cell of the map.
    rows, columns = (
        (2 * np.arange(tile_side) + 1) * side // (2 * tile_side) // scene.label_stride
        for tile_side, side in zip(size, scene_size(scene), strict=True)
    )
    ids: PreviewIds = scene.maps[name].numpy()[rows[:, None], columns]
    return _wrap_ids(ids)


def _draw_objects(scene: Scene, objects: Objects, size: tuple[int, int]) -> Tile:
    """Draw the boxes and masks of objects, larger ones first so that small ones stay visible."""
    image_size = scene_size(scene)
    fitted = resize_objects(objects, image_size, CropBox(0, 0, *image_size), size)
    fitted = fitted.select(torch.argsort(fitted.areas, descending=True))
    masks = fitted.masks or ()
    drawn = [
        DrawnObject((x0, y0, x1, y1), _object_colour(label), mask=decode_mask(masks[row], *size) if masks else None)
        for row, ((x0, y0, x1, y1), label) in enumerate(zip(fitted.boxes.tolist(), fitted.labels.tolist(), strict=True))
    ]
    return draw_objects(draw_map_tile(scene, "rgb", size), drawn)


def _object_legend(objects: Objects, info: DatasetInfo) -> dict[str, Colour]:
    """Return name, number and colour of the classes of objects, the most frequent first."""
    pairs = Counter(zip(objects.labels.tolist(), objects.is_crowd.tolist(), strict=True))
    return {
        f"{info.object_classes[label].name} {f'({count} crowd)' if is_crowd else count}": _object_colour(label)
        for (label, is_crowd), count in pairs.most_common()
    }


def _object_colour(label: int) -> Colour:
    red, green, blue = colour_instances(np.array([[label % (IGNORE - 1) + 1]]))[0, 0].tolist()
    return red, green, blue


def _wrap_ids(ids: PreviewIds) -> PreviewIds:
    """Wrap ids above 255, so that objects share colours if there are more objects than colours."""
    folded: PreviewIds = np.where(ids > IGNORE, ids % (IGNORE - 1) + 1, ids)
    return folded


def _class_legend(ids: PreviewIds, info: DatasetInfo) -> dict[str, Colour]:
    return {
        f"{name} {f'{fraction:.1%}' if fraction >= 0.001 else '< 0.1%'}": colour
        for name, fraction, colour in list_class_fractions(ids, info.class_names)
    }


def make_row_title(scene: Scene, info: DatasetInfo) -> str:
    """Return the key and the label of a scene."""
    key = scene.key if len(scene.key) <= _MAX_KEY_LENGTH else f"... {scene.key[4 - _MAX_KEY_LENGTH :]}"
    if scene.label is None:
        return key
    has_name = scene.label < len(info.labels)
    return f"{key}\n{info.label_names[scene.label] if has_name else f'label {scene.label}'}"
