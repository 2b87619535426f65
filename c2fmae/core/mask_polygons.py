"""Masks as polygons along the edges of their pixels."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int64, UInt8

Polygon = Int64[np.ndarray, "_ 2"]
"""x and y of each corner, in pixels: (0, 0) is the upper left corner of the first pixel."""


def trace_mask(mask: UInt8[np.ndarray, "height width"]) -> list[Polygon]:
    """Return the edges of a mask of zeros and ones: a polygon for each outline, and for each of its holes."""
    corners, is_double = _find_corners(mask)
    corners = np.concatenate([corners, corners[is_double]])
    # In each row of corners, horizontal edges are those from the first to the second, from the third to the fourth, …;
    # likewise vertical ones in each column. So each corner has one partner in its row and one in its column.
    partners = [_find_partners(np.lexsort((corners[:, axis], corners[:, 1 - axis]))) for axis in (0, 1)]
    is_visited = np.zeros(len(corners), bool)
    return [
        corners[_follow_edges(first, partners, is_visited)] for first in range(len(corners)) if not is_visited[first]
    ]


def join_polygons(polygons: Sequence[Polygon]) -> Polygon:
    """Return one polygon with the pixels of several, holes included, for formats with one polygon for an object.

    Polygons are connected by edges that are used in both directions, so that they enclose no pixel.
    """
    joined, *others = sorted(polygons, key=len, reverse=True)
    for polygon in others:
        distances = np.abs(joined[:, None] - polygon).sum(axis=2)
        here, there = np.unravel_index(distances.argmin(), distances.shape)
        detour = np.concatenate([polygon[there:], polygon[: there + 1]])
        joined = np.concatenate([joined[: here + 1], detour, joined[here:]])
    return joined


def _find_corners(mask: UInt8[np.ndarray, "height width"]) -> tuple[Polygon, Bool[np.ndarray, " points"]]:
    """Return the points where the edge turns, and at which of them two pixels touch only there."""
    padded = np.pad(mask != 0, 1)
    upper_left, upper_right = padded[:-1, :-1], padded[:-1, 1:]
    lower_left, lower_right = padded[1:, :-1], padded[1:, 1:]
    is_turn = upper_left ^ upper_right ^ lower_left ^ lower_right
    is_touch = (upper_left == lower_right) & (lower_left == upper_right) & (upper_left != upper_right)
    rows, columns = np.nonzero(is_turn | is_touch)
    return np.stack([columns, rows], axis=1), is_touch[rows, columns]


def _find_partners(order: Int64[np.ndarray, " corners"]) -> Int64[np.ndarray, " corners"]:
    partners = np.empty_like(order)
    partners[order[::2]], partners[order[1::2]] = order[1::2], order[::2]
    return partners


def _follow_edges(
    first: int, partners: Sequence[Int64[np.ndarray, " corners"]], is_visited: Bool[np.ndarray, " corners"]
) -> list[int]:
    """Return the corners of a polygon in turn, from one along its horizontal edge, and mark them as visited."""
    corners, corner, axis = list[int](), first, 0
    while not is_visited[corner]:
        corners.append(corner)
        is_visited[corner] = True
        corner, axis = int(partners[axis][corner]), 1 - axis
    return corners
