"""From overlapping masks to one instance map: selection, suppression, painting and numbering, as pure functions.

Masks have the size of the map: that of the image, or its stored cells. Areas are numbers of cells.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64, Integer
from torch import Tensor

from c2fmae.core.granularity import IGNORE
from c2fmae.data.instance_ids import numbers_to_instance_ids


def keep_masks(masks: Bool[Tensor, "mask rows columns"], *, min_cells: float, max_pieces: int) -> Bool[Tensor, " mask"]:
    """Return which masks have at least `min_cells` cells (and one) in at most `max_pieces` 4-connected pieces.

    Masks in many pieces are errors of a segmenter.
    """
    return torch.tensor(
        [
            np.count_nonzero(mask) >= max(min_cells, 1) and _has_few_pieces(mask, max_pieces)
            for mask in masks.cpu().numpy()
        ],
        dtype=torch.bool,
    )


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
    masks: Bool[Tensor, "mask rows columns"],
    scores: Float[Tensor, " mask"],
    candidates: Int64[Tensor, " candidate"],
    *,
    max_overlap: float,
    max_masks: int,
) -> Int64[Tensor, " selected"]:
    """Return at most `max_masks` of the candidates, indices of masks that overlap little, the highest score first.

    A mask whose IoU with a selected one exceeds `max_overlap` is removed. Of equal scores, the earlier mask is first.
    """
    cells = masks.cpu().numpy()
    rows = np.sort(candidates.cpu().numpy())
    order = rows[np.argsort(-scores.cpu().double().numpy()[rows], kind="stable")]
    areas, boxes = measure_masks(masks)
    selected: list[int] = []
    while len(order) and len(selected) < max_masks:
        first, order = order[0], order[1:]
        selected.append(int(first))
        top_left = np.maximum(boxes[first, :2], boxes[order, :2])
        bottom_right = np.minimum(boxes[first, 2:], boxes[order, 2:])
        sums = areas[first] + areas[order]
        # Counting is necessary only where the boxes and areas do not show that the masks overlap little.
        shared = np.minimum(areas[first], areas[order])
        shared = np.minimum(shared, (bottom_right - top_left).clip(min=0).prod(axis=1))
        for index in np.flatnonzero(shared > max_overlap * (sums - shared)).tolist():
            (y0, x0), (y1, x1) = top_left[index], bottom_right[index]
            shared[index] = np.count_nonzero(cells[first, y0:y1, x0:x1] & cells[order[index], y0:y1, x0:x1])
        order = order[shared <= max_overlap * (sums - shared)]
    return torch.tensor(selected, dtype=torch.int64)


def measure_masks(
    masks: Bool[Tensor, "mask rows columns"],
) -> tuple[Int64[np.ndarray, " mask"], Int64[np.ndarray, "mask 4"]]:
    """Return the area of each mask, and its box: first row, first column, and one past the last row and column."""
    areas, boxes = np.zeros(len(masks), np.int64), np.zeros((len(masks), 4), np.int64)
    for index, mask in enumerate(masks.cpu().numpy()):
        areas[index] = np.count_nonzero(mask)
        if areas[index]:
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            boxes[index] = rows[0], columns[0], rows[-1] + 1, columns[-1] + 1
    return areas, boxes


def paint_masks(
    masks: Bool[Tensor, "mask rows columns"], order: Sequence[int], *, min_visible: float = 0.5, min_cells: float = 1
) -> Integer[Tensor, "rows columns"]:
    """Paint masks in an order, the last on top, and return 1 + the index of the mask at each cell, or 0.

    Masks of which less than `min_visible` of their area or fewer than `min_cells` are visible are removed, and the
    others painted again, until there are none.
    """
    cells = masks.cpu().numpy()
    remaining = np.array(order, np.int64)
    areas = np.array([np.count_nonzero(cells[index]) for index in order], np.int64)
    while True:
        positions = _paint(cells, remaining)
        visible = np.bincount(positions.reshape(-1), minlength=len(remaining) + 1)[1:]
        is_visible = (visible >= min_visible * areas) & (visible >= max(min_cells, 1))
        if is_visible.all():
            return torch.from_numpy(np.append(0, remaining + 1).astype(np.int32)[positions])
        remaining, areas = remaining[is_visible], areas[is_visible]


def _paint(
    masks: Bool[np.ndarray, "mask rows columns"], order: Int64[np.ndarray, " painted"]
) -> Integer[np.ndarray, "rows columns"]:
    """Return 1 + the last position in the order whose mask contains a cell, or 0."""
    dtype = np.uint8 if len(order) <= IGNORE else np.int32
    positions, layer = np.zeros(masks.shape[1:], dtype), np.empty(masks.shape[1:], dtype)
    for position, index in enumerate(order.tolist(), start=1):
        # The maximum of increasing numbers is the last. Faster than an assignment to the cells of a mask.
        np.multiply(masks[index].view(np.uint8), dtype(position), out=layer)
        np.maximum(positions, layer, out=positions)
    return positions


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


def number_instances(
    ids: Integer[Tensor, "rows columns"], ignore: int | None = IGNORE
) -> tuple[Integer[Tensor, "rows columns"], MapInstances]:
    """Number the objects of a map 1, 2, … by area, the largest first, ties by the raster position of the first cell.

    Returns the map and its objects in that order, with the ids that they had. Cells with `ignore` become 255, which is
    "not labelled" in scenes; so the 255th object has the id 65535.
    """
    instances = list_instances(ids, ignore)
    order = np.lexsort((instances.first_cells, -instances.areas))
    new_ids = numbers_to_instance_ids(np.arange(1, len(order) + 1))
    table = np.zeros(max(int(ids.max()), 0) + 1, new_ids.dtype)
    table[instances.ids[order]] = new_ids
    if ignore is not None and ignore < len(table):
        table[ignore] = IGNORE
    numbered = torch.from_numpy(table[ids.cpu().numpy()])
    return numbered, MapInstances(
        instances.ids[order], instances.areas[order], instances.boxes[order], instances.first_cells[order]
    )


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
    padded = np.zeros(1 + mask.shape[0] * pitch, np.bool_)  # a cell after each row, and one at the start, are not set
    padded[1:].reshape(-1, pitch)[:, :-1] = mask
    changes = np.flatnonzero(padded[1:] != padded[:-1])
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
