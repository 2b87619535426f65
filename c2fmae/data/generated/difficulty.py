"""Levels of difficulty of generated scenes."""

import math
from dataclasses import dataclass
from typing import Literal

Difficulty = Literal["plain", "easy", "medium", "hard"]


@dataclass(frozen=True)
class DifficultyLevel:
    """Number, size and rotation of things; radii are in units of the image's side."""

    num_others: tuple[int, int]
    """Minimum and maximum number of things besides the largest one."""
    large_radii: tuple[float, float]
    """Range of the radius of the largest thing."""
    small_radii: tuple[float, float]
    """Range of the radius of the others."""
    max_rotation: float
    """Maximum rotation of a thing, in radians."""
    num_candidates: int
    """Random positions for each thing, of which the one farthest from the others is used."""
    contrast: float
    """Contrast of the textures."""


DIFFICULTY_LEVELS: dict[Difficulty, DifficultyLevel] = {
    # One thing so large that a small model is trained to classify small images in minutes.
    "plain": DifficultyLevel((0, 0), (0.30, 0.42), (0.12, 0.18), max_rotation=0.35, num_candidates=8, contrast=0.8),
    "easy": DifficultyLevel((0, 2), (0.22, 0.34), (0.10, 0.15), max_rotation=0.15, num_candidates=8, contrast=0.8),
    "medium": DifficultyLevel((1, 5), (0.18, 0.27), (0.08, 0.15), max_rotation=0.35, num_candidates=4, contrast=1.0),
    "hard": DifficultyLevel((7, 13), (0.13, 0.19), (0.06, 0.11), max_rotation=math.pi, num_candidates=1, contrast=1.4),
}
