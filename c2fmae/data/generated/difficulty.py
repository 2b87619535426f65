"""How hard scenes are."""

import math
from dataclasses import dataclass
from typing import Literal

Difficulty = Literal["plain", "easy", "medium", "hard"]


@dataclass(frozen=True)
class Level:
    """How full and how unruly scenes are; radii are in units of the picture's side."""

    others: tuple[int, int]
    """Fewest and most things beside the one that is meant to dominate."""
    large: tuple[float, float]
    """Radii of that one."""
    small: tuple[float, float]
    """Radii of the others."""
    turn: float
    """Most radians that a thing is turned by."""
    tries: int
    """Places that a thing is offered; it takes the roomiest."""
    contrast: float
    """Of the textures."""


LEVELS: dict[Difficulty, Level] = {
    # One thing so large that a small model of small pictures learns its kind in minutes.
    "plain": Level((0, 0), (0.30, 0.42), (0.12, 0.18), turn=0.35, tries=8, contrast=0.8),
    "easy": Level((0, 2), (0.22, 0.34), (0.10, 0.15), turn=0.15, tries=8, contrast=0.8),
    "medium": Level((1, 5), (0.18, 0.27), (0.08, 0.15), turn=0.35, tries=4, contrast=1.0),
    "hard": Level((7, 13), (0.13, 0.19), (0.06, 0.11), turn=math.pi, tries=1, contrast=1.4),
}
