"""Sources that wrap other sources: a subset of one, or a concatenation of several."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.core.scene import Scene
from c2fmae.data.info import DatasetInfo
from c2fmae.data.key_list import KeyList
from c2fmae.data.scenes import Scenes, check_index
from c2fmae.data.spacing import evenly_spaced_indices
from c2fmae.data.stored import StoredScenes


class SubsetScenes:
    """Some scenes of a source, some of their granularities, or both."""

    def __init__(
        self,
        scenes: Scenes,
        rows: Int64[np.ndarray, " rows"] | None = None,
        granularities: tuple[str, ...] | None = None,
    ) -> None:
        self.source = scenes
        rows = np.arange(len(scenes)) if rows is None else rows
        self.rows: Int64[Tensor, " rows"] = torch.from_numpy(rows)
        self.info = scenes.info.model_copy(update={"granularities": granularities or scenes.info.granularities})
        self.keys = KeyList.from_names(np.array(scenes.keys, dtype=object)[rows])

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Scene:
        check_index(index, len(self))
        scene = self.source[int(self.rows[index])]
        return replace(scene, maps={name: scene.maps[name] for name in self.info.granularities})

    def read_image_bytes(self, index: int) -> bytes | None:
        """Return the encoded image as stored."""
        return self.source.read_image_bytes(int(self.rows[index]))


def select_granularities(scenes: Scenes, granularities: tuple[str, ...]) -> Scenes:
    """Return scenes with only some of their granularities."""
    present = scenes.info.granularities
    if missing := next((name for name in granularities if name not in present), None):
        advice = ", or use another method, such as mae for images alone" if "rgb" in present else ""
        raise UserError(
            f"{missing}: the scenes have no such map (got {', '.join(present)}). Add it to the data{advice}"
        )
    return scenes if set(present) == set(granularities) else SubsetScenes(scenes, granularities=granularities)


def select_evenly(scenes: Scenes, count: int) -> Scenes:
    """Return at most `count` scenes, evenly spaced over a source."""
    return SubsetScenes(scenes, np.array(evenly_spaced_indices(len(scenes), count, centred=True), np.int64))


@dataclass(frozen=True)
class LimitedScenes:
    """At most `limit` evenly spaced scenes of a source, which is listed on first use."""

    scenes: Scenes
    limit: int

    @cached_property
    def _selected(self) -> Scenes:
        return select_evenly(self.scenes, self.limit)

    @property
    def info(self) -> DatasetInfo:
        """Classes and labels."""
        return self.scenes.info

    @property
    def keys(self) -> Sequence[str]:
        """The unique name of each scene."""
        return self._selected.keys

    def __len__(self) -> int:
        return len(self._selected)

    def __getitem__(self, index: int) -> Scene:
        return self._selected[index]

    def read_image_bytes(self, index: int) -> bytes | None:
        """Return the encoded image as stored."""
        return self._selected.read_image_bytes(index)


def read_stored_labels(scenes: Scenes) -> Int64[Tensor, " scene"] | None:
    """Return the labels of stored scenes or a subset of them, -1 for none, without decoding; None for other scenes."""
    if isinstance(scenes, StoredScenes):
        return scenes.labels
    if isinstance(scenes, SubsetScenes):
        labels = read_stored_labels(scenes.source)
        return None if labels is None else labels[scenes.rows]
    return None


class ConcatScenes:
    """Scenes of several sources with one label space, one source after the other."""

    def __init__(self, sources: Sequence[Scenes]) -> None:
        self.sources = tuple(sources)
        self.info: DatasetInfo = sources[0].info
        for other in sources[1:]:
            _check_compatible(self.info, other.info)
        self.keys = KeyList.from_names(key for source in sources for key in source.keys)
        if len(set(self.keys)) != len(self.keys):
            duplicate = Counter(self.keys).most_common(1)[0][0]
            raise UserError(f"sample {duplicate!r} is in two of the sources to combine. Remove it from one of them")
        self._ends = np.cumsum([len(source) for source in sources])

    def __len__(self) -> int:
        return len(self.keys)

    def _locate_scene(self, index: int) -> tuple[Scenes, int]:
        check_index(index, len(self))
        position = int(self._ends.searchsorted(index, side="right"))
        return self.sources[position], index - int(self._ends[position - 1] if position else 0)

    def __getitem__(self, index: int) -> Scene:
        source, row = self._locate_scene(index)
        return source[row]

    def read_image_bytes(self, index: int) -> bytes | None:
        """Return the encoded image as stored."""
        source, row = self._locate_scene(index)
        return source.read_image_bytes(row)


def _check_compatible(first: DatasetInfo, second: DatasetInfo) -> None:
    names = [repr(info.name) for info in (first, second)]
    for key in ("classes", "object_classes", "labels", "granularities", "channels", "value_range", "mean", "std"):
        values = [getattr(info, key) for info in (first, second)]
        if values[0] != values[1]:
            numbers = [len(value) if isinstance(value, tuple) else value for value in values]
            raise UserError(
                f"{names[0]} and {names[1]} cannot be combined: their {key} differ ({numbers[0]} and {numbers[1]})."
                " Convert them to one label space first"
            )
