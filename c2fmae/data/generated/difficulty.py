"""How hard scenes are."""

import math
from dataclasses import dataclass
from typing import Literal

Difficulty = Literal["plain", "easy", "medium", "hard"]


@dataclass(frozen=True)
class DifficultyLevel:
    """How full and how unruly scenes are; radii are in units of the picture's side."""

    num_others: tuple[int, int]
    """Fewest and most things beside the one that is meant to dominate."""
    large_radii: tuple[float, float]
    """Radii of that one."""
    small_radii: tuple[float, float]
    """Radii of the others."""
    max_rotation: float
    """Most radians that a thing is turned by."""
    num_candidates: int
    """Places that a thing is offered; it takes the roomiest."""
    contrast: float
    """Of the textures."""


DIFFICULTY_LEVELS: dict[Difficulty, DifficultyLevel] = {
    # One thing so large that a small model of small pictures learns its kind in minutes.
    "plain": DifficultyLevel((0, 0), (0.30, 0.42), (0.12, 0.18), max_rotation=0.35, num_candidates=8, contrast=0.8),
    "easy": DifficultyLevel((0, 2), (0.22, 0.34), (0.10, 0.15), max_rotation=0.15, num_candidates=8, contrast=0.8),
    "medium": DifficultyLevel((1, 5), (0.18, 0.27), (0.08, 0.15), max_rotation=0.35, num_candidates=4, contrast=1.0),
    "hard": DifficultyLevel((7, 13), (0.13, 0.19), (0.06, 0.11), max_rotation=math.pi, num_candidates=1, contrast=1.4),
}
