"""From overlapping masks to one instance map: selection, suppression, painting and numbering, as pure functions.

Masks have the size of the map: that of the image, or its stored cells. Areas are numbers of cells.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64, Integer
from torch import Tensor

from c2fmae.core.granularity import IGNORE

_CELLS_AT_ONCE = 1 << 16  # whose overlaps are counted: 26 MB for 100 masks
_MAX_UINT8_OBJECTS = 254  # 255 is "not labelled"
_NUMBER_255 = 65535  # the id of the 255th object, as in scenes


def keep_masks(masks: Bool[Tensor, "mask rows columns"], *, min_cells: float, max_pieces: int) -> Bool[Tensor, " mask"]:
    """Return which masks have at least `min_cells` cells (and one) in at most `max_pieces` 4-connected pieces.

    Masks in many pieces are errors of a segmenter.
    """
    cells = masks.cpu().numpy()
    is_valid = count_cells(masks) >= max(min_cells, 1)
    return torch.tensor(
        [bool(valid) and _has_few_pieces(mask, max_pieces) for mask, valid in zip(cells, is_valid, strict=True)],
        dtype=torch.bool,
    )


def count_cells(masks: Bool[Tensor, "mask rows columns"]) -> Int64[Tensor, " mask"]:
    """Return the area of each mask."""
    # Ten times as fast as a sum.
    return torch.tensor([np.count_nonzero(mask) for mask in masks.cpu().numpy()], dtype=torch.int64)


def suppress_boxes(
    boxes: Float[Tensor, "box 4"],
    scores: Float[Tensor, " box"],
    ranks: Int[Tensor, " box"],
    *,
    max_overlap: float,
    max_boxes: int,
) -> Int64[Tensor, " selected"]:
    """Return the indices of at most `max_boxes` boxes that overlap little, the highest score first.

    A box whose IoU with a selected one exceeds `max_overlap` is removed. Equal scores are ordered by box (y0, x0, y1,
    x1), then by `ranks`, such as the positions of their names.
    """
    x0, y0, x1, y1 = boxes.cpu().double().numpy().T
    order = np.lexsort((ranks.cpu().numpy(), x1, y1, x0, y0, -scores.cpu().double().numpy()))
    areas = (x1 - x0) * (y1 - y0)
    selected: list[int] = []
    while len(order) and len(selected) < max_boxes:
        first, order = order[0], order[1:]
        selected.append(int(first))
        widths = np.minimum(x1[first], x1[order]) - np.maximum(x0[first], x0[order])
        heights = np.minimum(y1[first], y1[order]) - np.maximum(y0[first], y0[order])
        intersections = widths.clip(min=0) * heights.clip(min=0)
        order = order[intersections <= max_overlap * (areas[first] + areas[order] - intersections)]
    return torch.tensor(selected, dtype=torch.int64)


def suppress_masks(
    masks: Bool[Tensor, "mask rows columns"], scores: Float[Tensor, " mask"], *, max_overlap: float, max_masks: int
) -> Int64[Tensor, " selected"]:
    """Return the indices of at most `max_masks` masks that overlap little, the highest score first.

    A mask whose IoU with a selected one exceeds `max_overlap` is removed. Of equal scores, the earlier mask is first.
    """
    order = np.argsort(-scores.cpu().double().numpy(), kind="stable")
    intersections = _count_shared_cells(masks)
    areas = intersections.diagonal()
    selected: list[int] = []
    while len(order) and len(selected) < max_masks:
        first, order = order[0], order[1:]
        selected.append(int(first))
        shared = intersections[first, order]
        order = order[shared <= max_overlap * (areas[first] + areas[order] - shared)]
    return torch.tensor(selected, dtype=torch.int64)


def _count_shared_cells(masks: Bool[Tensor, "mask rows columns"]) -> Int64[np.ndarray, "mask mask"]:
    """Return the number of cells that each pair of masks has in common."""
    counts = torch.zeros((len(masks), len(masks)), dtype=torch.int64)
    for part in masks.cpu().flatten(1).split(_CELLS_AT_ONCE, dim=1):
        values = part.float()  # counts up to 2^24 are exact
        counts += (values @ values.T).long()
    return counts.numpy()


def paint_masks(
    masks: Bool[Tensor, "mask rows columns"], *, min_visible: float = 0.5, min_cells: float = 1
) -> Int[Tensor, "rows columns"]:
    """Paint masks in their order, the last on top, and return the number of the mask at each cell: from 1, or 0.

    Masks of which less than `min_visible` of their area or fewer than `min_cells` are visible are removed, and the
    others painted again, until there are none.
    """
    cells = masks.cpu().numpy()
    areas = count_cells(masks).numpy()
    remaining = np.arange(len(cells))
    while True:
        ids = _paint(cells, remaining)
        visible = np.bincount(ids.reshape(-1), minlength=len(cells) + 1)[1:][remaining]
        is_visible = (visible >= min_visible * areas[remaining]) & (visible >= max(min_cells, 1))
        if is_visible.all():
            return torch.from_numpy(ids)
        remaining = remaining[is_visible]


def _paint(
    masks: Bool[np.ndarray, "mask rows columns"], remaining: Int64[np.ndarray, " remaining"]
) -> Int[np.ndarray, "rows columns"]:
    """Return 1 + the last of the remaining masks that contains a cell."""
    dtype = np.uint8 if len(masks) <= IGNORE else np.int32
    ids = np.zeros(masks.shape[1:], dtype)
    for index in remaining.tolist():
        # The maximum of increasing numbers is the last; five times as fast as assignment to a mask.
        np.maximum(ids, masks[index] * dtype(index + 1), out=ids)
    return ids


@dataclass(frozen=True)
class MapInstances:
    """The objects of an instance map, in the order of their ids."""

    ids: Int64[np.ndarray, " object"]
    areas: Int64[np.ndarray, " object"]
    boxes: Int64[np.ndarray, "object 4"]
    """First column, first row, and one past the last column and the last row, in cells."""
    first_cells: Int64[np.ndarray, " object"]
    """The raster position of the first cell."""


def list_instances(ids: Integer[Tensor, "rows columns"], ignore: int | None = IGNORE) -> MapInstances:
    """Return the objects of a map: all ids but 0 and `ignore`."""
    flat = ids.cpu().numpy().reshape(-1)
    cells = np.flatnonzero(flat if ignore is None else (flat != 0) & (flat != ignore))
    values = flat[cells]
    order = np.argsort(values, kind="stable")
    cells, values = cells[order], values[order].astype(np.int64)
    starts = np.flatnonzero(np.diff(values, prepend=-1))
    if not len(starts):
        none = np.zeros(0, np.int64)
        return MapInstances(none, none, np.zeros((0, 4), np.int64), none)
    lasts = np.append(starts[1:], len(cells)) - 1
    rows, columns = np.divmod(cells, ids.shape[1])
    x0, x1 = np.minimum.reduceat(columns, starts), np.maximum.reduceat(columns, starts)
    boxes = np.stack([x0, rows[starts], x1 + 1, rows[lasts] + 1], axis=1)
    return MapInstances(values[starts], lasts - starts + 1, boxes, cells[starts])


def renumber_instances(
    ids: Integer[Tensor, "rows columns"], ignore: int | None = IGNORE
) -> tuple[Integer[Tensor, "rows columns"], MapInstances]:
    """Number the objects of a map 1, 2, … by area, the largest first, ties by the raster position of the first cell.

    Returns the map and its objects in that order, with the ids that they had. Cells with `ignore` become 255, which is
    "not labelled" in scenes; so the 255th object has the id 65535.
    """
    instances = list_instances(ids, ignore)
    order = np.lexsort((instances.first_cells, -instances.areas))
    numbers = number_to_id(np.arange(1, len(order) + 1))
    table = np.zeros(max(int(ids.max()), 0) + 1, np.uint8 if len(order) <= _MAX_UINT8_OBJECTS else np.int32)
    table[instances.ids[order]] = numbers
    if ignore is not None and ignore < len(table):
        table[ignore] = IGNORE
    numbered = torch.from_numpy(table[ids.cpu().numpy()])
    return numbered, MapInstances(
        instances.ids[order], instances.areas[order], instances.boxes[order], instances.first_cells[order]
    )


def number_to_id(numbers: Int64[np.ndarray, " object"]) -> Int64[np.ndarray, " object"]:
    """Return the ids of numbered objects: the numbers themselves, but 65535 for 255."""
    return np.where(numbers == IGNORE, _NUMBER_255, numbers)


def _has_few_pieces(mask: Bool[np.ndarray, "rows columns"], limit: int) -> bool:
    """Return whether a mask has at most `limit` 4-connected pieces."""
    firsts, lasts = _list_run_neighbours(mask)
    # The runs in the first row of a piece have no neighbours, so most masks need no exact count.
    return int(np.count_nonzero(firsts == lasts)) <= limit or _count_pieces(firsts, lasts) <= limit


def _list_run_neighbours(
    mask: Bool[np.ndarray, "rows columns"],
) -> tuple[Int64[np.ndarray, " run"], Int64[np.ndarray, " run"]]:
    """Return, for each horizontal run of a mask, the range of runs in the row above that touch it."""
    pitch = mask.shape[1] + 1
    padded = np.zeros((mask.shape[0], pitch), np.int8)
    padded[:, :-1] = mask
    changes = np.flatnonzero(np.diff(padded.reshape(-1), prepend=0))
    starts, ends = changes[::2], changes[1::2]
    return np.searchsorted(ends, starts - pitch, side="right"), np.searchsorted(starts, ends - pitch, side="left")


def _count_pieces(firsts: Int64[np.ndarray, " run"], lasts: Int64[np.ndarray, " run"]) -> int:
    """Return the number of connected components of runs with their neighbours."""
    counts = (lasts - firsts).clip(min=0)
    runs = np.repeat(np.arange(len(firsts)), counts)
    neighbours = np.arange(len(runs)) + np.repeat(firsts - np.cumsum(counts) + counts, counts)
    roots = np.arange(len(firsts))
    while not np.array_equal(roots[runs], roots[neighbours]):
        one, other = roots[runs], roots[neighbours]
        np.minimum.at(roots, np.maximum(one, other), np.minimum(one, other))
        while not np.array_equal(roots, roots[roots]):
            roots = roots[roots]
    return int(np.count_nonzero(roots == np.arange(len(roots))))
