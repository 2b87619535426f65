"""Tar shards in WebDataset layout, any sample of them one read away."""

import os
import resource
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.core.scene import GRANULARITIES
from c2fmae.data.info import PLAN_NAME, DatasetInfo
from c2fmae.data.key_list import KeyList
from c2fmae.data.problems import Problem
from c2fmae.data.stored import StoredScenes, in_order, lacks_all, suffixes_of
from c2fmae.data.tar_index import ShardIndex, open_index, stamp_of

_MAX_OPEN = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2  # a process needs files for other things too


class ShardScenes(StoredScenes):
    """Tar shards of one data set, in the order of their names; every sample is one read away."""

    def __init__(self, shards: Sequence[Path], indices: Sequence[ShardIndex], info: DatasetInfo) -> None:
        keys = KeyList(b"".join(index.keys.lines for index in indices))
        super().__init__(info, keys, np.concatenate([index.labels for index in indices]))
        self._shards = tuple(shards)
        self._stamps = tuple(index.stamp for index in indices)
        self._ends = list(accumulate(len(index.keys) for index in indices))
        places = [np.stack([_places(index, name) for name in info.granularities], axis=1) for index in indices]
        self._places: Int64[Tensor, "samples granularities 2"] = torch.from_numpy(np.concatenate(places))
        self._open: dict[int, _OpenFile] = {}

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_open": {}}  # a spawned process opens its own

    def where(self, index: int, name: str) -> str:
        """Return the shard and the member."""
        return f"{self._shards[bisect_right(self._ends, index)]}: {self.keys[index]}.{GRANULARITIES.get(name).suffix}"

    def record(self, index: int) -> dict[str, bytes]:
        """Read the members where they lie; `pread` moves no position, so processes may share the file."""
        shard = bisect_right(self._ends, index)
        opened = self._open.get(shard) or self._open_shard(shard)  # held until it is read, whatever is closed meanwhile
        places = self._places.numpy()[index].tolist()
        try:
            parts = [os.pread(opened.descriptor, size, offset) for offset, size in places]
        except OSError as error:
            raise UserError(f"{self._shards[shard]}: cannot be read: {error.strerror}. Restore the shard") from error
        for part, (_, size) in zip(parts, places, strict=True):
            if len(part) != size:
                where = f"{self._shards[shard]}: {self.keys[index]}"
                raise UserError(f"{where}: the shard was cut short while it was open. Restore it")
        return dict(zip(self.info.granularities, parts, strict=True))

    def _open_shard(self, shard: int) -> "_OpenFile":
        for oldest in list(self._open)[: max(len(self._open) + 1 - _MAX_OPEN, 0)]:
            self._open.pop(oldest, None)
        try:
            opened = _OpenFile(self._shards[shard])
        except OSError as error:
            raise UserError(f"{self._shards[shard]}: cannot be opened: {error.strerror}. Restore it") from error
        if stamp_of(opened.descriptor) != self._stamps[shard]:
            raise UserError(f"{self._shards[shard]}: changed since it was opened. Open the data again")
        self._open[shard] = opened
        return opened


class _OpenFile:
    """A descriptor that is closed when nobody reads through it any more, be it another thread."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if "descriptor" in self.__dict__:
            os.close(self.descriptor)


def _places(index: ShardIndex, name: str) -> Int64[np.ndarray, "samples 2"]:
    """Offset and size of a granularity of every sample; where a photo may have several suffixes, of the first."""
    places = np.tile(np.array([0, -1], np.int64), (len(index.keys), 1))
    for suffix in reversed(suffixes_of(name)):
        if suffix in index.parts:
            column = index.parts.index(suffix)
            is_there = index.sizes[:, column] >= 0
            places[is_there] = np.stack([index.offsets, index.sizes], axis=2)[is_there, column]
    return places


def _missing(index: ShardIndex, granularities: Sequence[str], shard: Path) -> list[Problem]:
    """List the samples of a shard that lack a granularity."""
    problems = []
    for name in granularities:
        lacks = np.flatnonzero(_places(index, name)[:, 1] < 0)
        suffix = GRANULARITIES.get(name).suffix
        problems += [
            Problem(key, f"{shard}: sample {key!r} lacks {key}.{suffix}. Add it, or remove the sample")
            for key in index.keys.take(lacks)
        ]
    return problems


def open_shards(
    shards: Sequence[Path], granularities: Sequence[str] | None
) -> tuple[ShardScenes | None, tuple[Problem, ...]]:
    """Open the samples that are whole of the shards of one folder, and list what is wrong with the others."""
    folder = shards[0].parent
    told = DatasetInfo.beside(folder)
    if told is None and (folder / PLAN_NAME).exists():
        raise UserError(f"{folder}: a pack that is not finished. Run the `c2fmae data pack` that began it once more")
    indices = [_samples_of(open_index(shard)) for shard in shards]
    parts = {part for index in indices for part in index.parts}
    if granularities is None:
        is_told = told is not None and "granularities" in told.model_fields_set
        found = [name for name in GRANULARITIES if parts & {*suffixes_of(name)}]
        granularities = told.granularities if told and is_told else found
    granularities = in_order(granularities)
    problems = [problem for index in indices for problem in index.problems]
    where = str(shards[0]) if len(shards) == 1 else f"{shards[0].parent}/*.tar"
    if not granularities or not any(len(index.keys) for index in indices):
        text = f"{where}: no scenes. Expected KEY.jpg, KEY.semantic.png and KEY.instance.png"
        return None, tuple(problems or [Problem(None, text)])
    for name in granularities:
        if not parts & {*suffixes_of(name)}:
            return None, (*problems, lacks_all(where, name, granularities))

    seen, kept = set[str](), []
    for shard, index in zip(shards, indices, strict=True):
        spoilt = {problem.key: problem for problem in _missing(index, granularities, shard)}
        for key in seen.intersection(names := list(index.keys)):
            text = f"{shard}: sample {key!r} is in another shard too. Pack every sample once"
            spoilt[key] = Problem(key, text)
        seen.update(names)
        problems += spoilt.values()
        kept.append(_select(index, [row for row, key in enumerate(names) if key not in spoilt]) if spoilt else index)
    info = (told or DatasetInfo()).model_copy(update={"granularities": granularities})
    scenes = ShardScenes(shards, kept, info)
    return (scenes if len(scenes) else None), tuple(problems)


def _samples_of(index: ShardIndex) -> ShardIndex:
    """Leave out what has no granularity at all: a README, captions."""
    is_there = [_places(index, name)[:, 1] >= 0 for name in GRANULARITIES]
    is_sample = np.any(is_there, axis=0)
    return index if is_sample.all() else _select(index, np.flatnonzero(is_sample))


def _select(index: ShardIndex, rows: Sequence[int] | Int64[np.ndarray, " rows"]) -> ShardIndex:
    at = np.asarray(rows, np.int64)
    keys, labels = index.keys.take(at), index.labels[at]
    return replace(index, keys=keys, offsets=index.offsets[at], sizes=index.sizes[at], labels=labels)
