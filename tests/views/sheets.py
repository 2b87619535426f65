"""A stand-in for `draw_tile_sheet` in a module of figures that records the tiles and texts of the last sheet."""

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from c2fmae.report.drawing import draw_tile_sheet


class RecordedSheet:
    """The rows of tiles and the texts of the last sheet that a module has drawn."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> None:
        self.rows: list[list[np.ndarray]] = []
        self.column_titles: list[str] = []
        self.texts: dict[str, Any] = {}
        monkeypatch.setattr(module, "draw_tile_sheet", self._record)

    @property
    def columns(self) -> dict[str, list[np.ndarray]]:
        """The tiles of each column by its title."""
        return {title: [row[i] for row in self.rows if i < len(row)] for i, title in enumerate(self.column_titles)}

    def _record(self, rows: Sequence[Sequence[np.ndarray]], *, column_titles: list[str], **texts: Any) -> Image.Image:
        self.rows, self.column_titles, self.texts = [list(row) for row in rows], column_titles, texts
        return draw_tile_sheet(rows, column_titles=column_titles, **texts)
