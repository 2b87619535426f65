"""Maps of images beside the true maps of the same images, brought to one size."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int, Int64, Integer, UInt8
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.core.granularity import IGNORE
from c2fmae.core.labels import ClassInfo
from c2fmae.core.scene import Scene
from c2fmae.data import Scenes
from c2fmae.data.combine import SubsetScenes
from c2fmae.data.encode import keys_to_member_keys
from c2fmae.data.geometry import scene_size, stored_pixels
from c2fmae.data.scenes import read_scene
from c2fmae.data.spacing import evenly_spaced_indices
from c2fmae.eval.maps.semantic import UNASSIGNED

COMPARED = ("semantic", "instance")


@dataclass(frozen=True)
class MapPair:
    """The maps of an image and its true maps, all with the cells of the true ones."""

    key: str
    image: UInt8[Tensor, "channels height width"] | None
    size: tuple[int, int]
    """Height and width in pixels of the image that the true maps describe."""
    predicted: Mapping[str, Integer[Tensor, "rows columns"]]
    truth: Mapping[str, Integer[Tensor, "rows columns"]]
    stride: int
    """Pixels per cell along each side."""


@dataclass(frozen=True)
class MapPairs:
    """The images that two sets have in common, in the order of the truth."""

    maps: Scenes
    truth: Scenes
    granularities: tuple[str, ...]
    """The maps that both sets have."""
    num_only_maps: int
    """Number of images whose truth is missing."""
    num_only_truth: int
    """Number of images of the truth without maps."""

    @property
    def keys(self) -> Sequence[str]:
        """The key of each image."""
        return self.truth.keys

    def __len__(self) -> int:
        return len(self.truth)

    def __getitem__(self, index: int) -> MapPair:
        predicted = read_scene(self.maps, index, purpose="compare")
        true = read_scene(self.truth, index, purpose="compare")
        image = true.maps.get("rgb", predicted.maps.get("rgb"))
        size, true_size = _full_size(predicted, true), _full_size(true, predicted)
        strides = predicted.label_stride, true.label_stride
        # Sizes may be rounded, to pixels and, without an image, to cells.
        tolerance = strides[0] * max(true_size) + strides[1] * max(size)
        if abs(size[0] * true_size[1] - size[1] * true_size[0]) > tolerance:
            raise UserError(
                f"{true.key}: the maps are of {size[1]}×{size[0]} pixels, the truth of {true_size[1]}×{true_size[0]}"
                " (expected the same image, at any size). Compare maps of the same images"
            )
        maps = {
            name: sample_ids(predicted.maps[name], size, strides[0], true_size, strides[1])
            for name in self.granularities
        }
        truth = {name: true.maps[name] for name in self.granularities}
        return MapPair(true.key, image, true_size, maps, truth, strides[1])


def pair_scenes(maps: Scenes, truth: Scenes, *, limit: int | None = None) -> MapPairs:
    """Return the images that have maps and true maps, by their keys, or `limit` of them, evenly spaced."""
    compared = find_common_maps(maps.info.granularities, truth.info.granularities)
    map_rows, rows = match_keys(maps.keys, truth.keys)
    num_only_maps, num_only_truth = len(maps) - len(rows), len(truth) - len(rows)
    if limit:
        places = evenly_spaced_indices(len(rows), limit, centred=True)
        map_rows, rows = ([some[place] for place in places] for some in (map_rows, rows))
    has_image = "rgb" in truth.info.granularities
    return MapPairs(
        _select(maps, map_rows, compared, with_image=not has_image),  # one image is enough
        _select(truth, rows, compared, with_image=has_image),
        compared,
        num_only_maps,
        num_only_truth,
    )


def find_common_maps(maps: Collection[str], truth: Collection[str]) -> tuple[str, ...]:
    """Return the maps that two sets have, by their granularities."""
    names = [{*granularities} & {*COMPARED} for granularities in (maps, truth)]
    common = tuple(name for name in COMPARED if name in names[0] & names[1])
    if not common:
        got = " and ".join(", ".join(sorted(some)) or "none" for some in names)
        raise UserError(f"the two sets have no map in common (got {got}). Compare sets that both have one")
    return common


def match_keys(maps: Sequence[str], truth: Sequence[str]) -> tuple[list[int], list[int]]:
    """Return the rows of common keys in both sets, in the order of the truth. Packed keys equal those of the source.

    >>> match_keys(["b", "v1.0/a_1"], ["v1.0/a.1", "c", "b"])
    ([1, 0], [0, 2])
    """
    row_by_key = {key: row for row, key in enumerate(keys_to_member_keys(maps))}
    rows = [row_by_key.get(key) for key in keys_to_member_keys(truth)]
    pairs = [(map_row, row) for row, map_row in enumerate(rows) if map_row is not None]
    if not pairs:
        raise UserError(
            f"the two sets have no image in common: a key of the maps is {maps[0]!r}, one of the truth is"
            f" {truth[0]!r}. Compare maps of the same images, with the same names"
        )
    return [map_row for map_row, _ in pairs], [row for _, row in pairs]


def match_classes(
    predicted: Sequence[ClassInfo], truth: Sequence[ClassInfo]
) -> tuple[Int64[Tensor, " predicted"], list[str]]:
    """Return the true class with the name of each predicted class, -1 for none, and the names without one.

    Case does not matter, nor does whether words are separated by spaces, `_` or `-`.

    >>> names = [[ClassInfo(name=name) for name in row] for row in (("Sky", "traffic_light", "cat"), ("cat", "sky"))]
    >>> match_classes(*names)
    (tensor([ 1, -1,  0]), ['traffic_light'])
    """
    true_ids = {_normalise_name(entry.name): number for number, entry in enumerate(truth)}
    matched = [true_ids.get(_normalise_name(entry.name), UNASSIGNED) for entry in predicted]
    unmatched = [entry.name for entry, number in zip(predicted, matched, strict=True) if number == UNASSIGNED]
    return torch.tensor(matched, dtype=torch.int64), unmatched


def convert_classes(
    ids: Integer[Tensor, "rows columns"], classes: Int64[Tensor, " predicted"]
) -> UInt8[Tensor, "rows columns"]:
    """Return a predicted semantic map in true classes; those without one are unlabelled."""
    table = torch.full((IGNORE + 1,), IGNORE, dtype=torch.uint8)
    table[: len(classes)] = classes.where(classes != UNASSIGNED, IGNORE).to(torch.uint8)
    return table[ids.long()]


def sample_ids(
    ids: Integer[Tensor, "rows columns"],
    size: tuple[int, int],
    stride: int,
    target_size: tuple[int, int],
    target_stride: int,
) -> Integer[Tensor, "target_rows target_columns"]:
    """Return the ids of a map at the pixels of which another map of the same image stores the cells.

    Each map describes an image of a size at a stride: cell (i, j) is the middle of stride × stride pixels.

    >>> sample_ids(torch.tensor([[1, 2, 3]]), (4, 9), 4, (4, 9), 2).tolist()
    [[1, 1, 2, 2, 3], [1, 1, 2, 2, 3]]
    """
    rows, columns = (
        _nearest_cells(ids.shape[axis], size[axis], stride, target_size[axis], target_stride) for axis in (0, 1)
    )
    return torch.from_numpy(ids.numpy().take(rows, axis=0).take(columns, axis=1))


def _nearest_cells(
    num_cells: int, length: int, stride: int, target_length: int, target_stride: int
) -> Int[np.ndarray, " cells"]:
    """Return the cell of each target cell along an axis; of equal lengths and strides, all in order."""
    pixels = stored_pixels(target_length, target_stride)
    return ((2 * pixels + 1) * length // (2 * target_length) // stride).clip(max=num_cells - 1)


def _full_size(scene: Scene, other: Scene) -> tuple[int, int]:
    """Return height and width of the image that a scene's maps describe: of the other scene, if they fit it.

    The number of cells at a stride leaves the size of the image open.
    """
    if "rgb" in scene.maps or scene.label_stride == 1:
        return scene_size(scene)
    height, width = scene_size(other)
    cells = tuple(-(-side // scene.label_stride) for side in (height, width))
    is_same = cells == tuple(next(iter(scene.maps.values())).shape)
    return (height, width) if is_same else scene_size(scene)


def _select(scenes: Scenes, rows: Sequence[int], granularities: tuple[str, ...], *, with_image: bool) -> Scenes:
    has_image = with_image and "rgb" in scenes.info.granularities
    return SubsetScenes(scenes, np.array(rows, np.int64), (*granularities, "rgb") if has_image else granularities)


def _normalise_name(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())
