"""Tar shards in WebDataset layout, with random access to samples."""

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
from c2fmae.core.files import open_descriptor, read_error
from c2fmae.core.granularity import GRANULARITIES
from c2fmae.data.info import PACK_PLAN_FILE, DatasetInfo
from c2fmae.data.key_list import KeyList
from c2fmae.data.object_json import OBJECTS_SUFFIX
from c2fmae.data.problems import Problem
from c2fmae.data.stored import StoredScenes, granularity_suffixes, missing_granularity_problem, sort_coarse_to_fine
from c2fmae.data.tar_index import ShardIndex, file_fingerprint, load_or_build_index, scan_shard

_MAX_OPEN = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2  # the rest is for other files of the process


class ShardScenes(StoredScenes):
    """Scenes of the tar shards of one data set, in the order of the shards."""

    def __init__(self, shards: Sequence[Path], indices: Sequence[ShardIndex], info: DatasetInfo) -> None:
        keys = KeyList(b"".join(index.keys.encoded for index in indices))
        super().__init__(info, keys, np.concatenate([index.labels for index in indices]))
        self._shards = tuple(shards)
        self._fingerprints = tuple(index.fingerprint for index in indices)
        self._ends = list(accumulate(len(index.keys) for index in indices))
        byte_ranges = [
            np.stack([_find_byte_ranges(index, name) for name in info.granularities], axis=1) for index in indices
        ]
        self._byte_ranges: Int64[Tensor, "samples granularities 2"] = torch.from_numpy(np.concatenate(byte_ranges))
        self._object_ranges: Int64[Tensor, "samples 2"] = torch.from_numpy(
            np.concatenate([_find_member(index, OBJECTS_SUFFIX) for index in indices])
        )
        self._open_files: dict[int, _FileHandle] = {}

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_open_files": {}}  # a spawned process opens its own

    def describe_location(self, index: int, name: str) -> str:
        """Return the shard and the member of a granularity, or of another suffix."""
        suffix = GRANULARITIES.get(name).suffix if name in GRANULARITIES else name
        return f"{self._shards[bisect_right(self._ends, index)]}: {self.keys[index]}.{suffix}"

    def read_map_bytes(self, index: int) -> dict[str, bytes]:
        """Read the members in place; `pread` moves no file position, so that processes may share the descriptor."""
        chunks = self._read_members(index, self._byte_ranges.numpy()[index].tolist())
        return dict(zip(self.info.granularities, chunks, strict=True))

    def read_objects_bytes(self, index: int) -> bytes:
        """Return `KEY.objects.json`."""
        return self._read_members(index, [self._object_ranges.numpy()[index].tolist()])[0]

    def _read_members(self, index: int, byte_ranges: Sequence[Sequence[int]]) -> list[bytes]:
        shard = bisect_right(self._ends, index)
        handle = self._open_files.get(shard) or self._open_shard(shard)  # this reference keeps it open until it is read
        try:
            chunks = [os.pread(handle.descriptor, size, offset) for offset, size in byte_ranges]
        except OSError as error:
            raise read_error(self._shards[shard], error) from error
        for chunk, (_, size) in zip(chunks, byte_ranges, strict=True):
            if len(chunk) != size:
                location = f"{self._shards[shard]}: {self.keys[index]}"
                raise UserError(f"{location}: the shard was truncated while it was open. Restore it")
        return chunks

    def _open_shard(self, shard: int) -> "_FileHandle":
        for oldest in list(self._open_files)[: max(len(self._open_files) + 1 - _MAX_OPEN, 0)]:
            self._open_files.pop(oldest, None)
        handle = _FileHandle(self._shards[shard])
        if file_fingerprint(handle.descriptor) != self._fingerprints[shard]:
            raise UserError(f"{self._shards[shard]}: changed since it was opened. Open the data again")
        self._open_files[shard] = handle
        return handle


class _FileHandle:
    """A descriptor that is closed with its last reference, which another thread may hold."""

    def __init__(self, path: Path) -> None:
        self.descriptor = open_descriptor(path)

    def __del__(self) -> None:
        if "descriptor" in self.__dict__:
            os.close(self.descriptor)


def _find_byte_ranges(index: ShardIndex, name: str) -> Int64[np.ndarray, "samples 2"]:
    """Return offset and size of a granularity of every sample; the size is -1 for a sample without it.

    If an image has several files, the one whose suffix comes first in `IMAGE_SUFFIXES` is used.
    """
    byte_ranges = np.tile(np.array([0, -1], np.int64), (len(index.keys), 1))
    for suffix in reversed(granularity_suffixes(name)):
        if suffix in index.suffixes:
            column = index.suffixes.index(suffix)
            is_present = index.sizes[:, column] >= 0
            byte_ranges[is_present] = np.stack([index.offsets, index.sizes], axis=2)[is_present, column]
    return byte_ranges


def _find_member(index: ShardIndex, suffix: str) -> Int64[np.ndarray, "samples 2"]:
    """Return offset and size of the member of every sample with some suffix; the size is -1 for one without it."""
    if suffix not in index.suffixes:
        return np.tile(np.array([0, -1], np.int64), (len(index.keys), 1))
    column = index.suffixes.index(suffix)
    return np.stack([index.offsets[:, column], index.sizes[:, column]], axis=1)


def _missing_problems(
    index: ShardIndex, granularities: Sequence[str], shard: Path, *, has_objects: bool
) -> list[Problem]:
    """Return a problem for each sample of a shard without one of the granularities, or without objects."""
    byte_ranges = {GRANULARITIES.get(name).suffix: _find_byte_ranges(index, name) for name in granularities}
    if has_objects:
        byte_ranges[OBJECTS_SUFFIX] = _find_member(index, OBJECTS_SUFFIX)
    problems = []
    for suffix, ranges in byte_ranges.items():
        rows = np.flatnonzero(ranges[:, 1] < 0)
        problems += [
            Problem(key, f"{shard}: sample {key!r} has no {key}.{suffix}. Add it, or remove the sample")
            for key in index.keys.select(rows)
        ]
    return problems


def open_shards(
    shards: Sequence[Path], granularities: Sequence[str] | None, *, objects: bool = False
) -> tuple[ShardScenes | None, tuple[Problem, ...]]:
    """Open the complete samples of the shards of one directory, and list the problems of the others."""
    folder = shards[0].parent
    info_on_disk = DatasetInfo.read_from_dir(folder)
    if info_on_disk is None and (folder / PACK_PLAN_FILE).exists():
        raise UserError(
            f"{folder}: is an unfinished pack. Run the `c2fmae data pack` or `c2fmae label` command that started it"
            " again"
        )
    indices = [_drop_non_samples(load_or_build_index(shard, scan_shard)) for shard in shards]
    suffixes = {suffix for index in indices for suffix in index.suffixes}
    if granularities is None:
        is_declared = info_on_disk is not None and "granularities" in info_on_disk.model_fields_set
        present = [name for name in GRANULARITIES if suffixes & {*granularity_suffixes(name)}]
        granularities = info_on_disk.granularities if info_on_disk and is_declared else present
    granularities = sort_coarse_to_fine(granularities)
    problems = [problem for index in indices for problem in index.problems]
    location = str(shards[0]) if len(shards) == 1 else f"{shards[0].parent}/*.tar"
    if not granularities or not any(len(index.keys) for index in indices):
        text = (
            f"{location}: contains no scenes (expected KEY.jpg, KEY.semantic.png and KEY.instance.png). Check the path"
        )
        return None, tuple(problems or [Problem(None, text)])
    for name in granularities:
        if not suffixes & {*granularity_suffixes(name)}:
            return None, (*problems, missing_granularity_problem(location, name, granularities))

    object_classes = info_on_disk.object_classes if info_on_disk is not None and objects else ()
    seen, complete_indices = set[str](), []
    for shard, index in zip(shards, indices, strict=True):
        problem_by_key = {
            problem.key: problem
            for problem in _missing_problems(index, granularities, shard, has_objects=bool(object_classes))
        }
        for key in seen.intersection(names := list(index.keys)):
            text = f"{shard}: sample {key!r} is in another shard too. Pack every sample once"
            problem_by_key[key] = Problem(key, text)
        seen.update(names)
        problems += problem_by_key.values()
        complete_indices.append(
            _select_rows(index, [row for row, key in enumerate(names) if key not in problem_by_key])
            if problem_by_key
            else index
        )
    changes = {"granularities": granularities, "object_classes": object_classes}
    info = (info_on_disk or DatasetInfo()).model_copy(update=changes)
    scenes = ShardScenes(shards, complete_indices, info)
    return (scenes if len(scenes) else None), tuple(problems)


def _drop_non_samples(index: ShardIndex) -> ShardIndex:
    """Remove members without any granularity, such as a README."""
    is_present = [_find_byte_ranges(index, name)[:, 1] >= 0 for name in GRANULARITIES]
    is_sample = np.any(is_present, axis=0)
    return index if is_sample.all() else _select_rows(index, np.flatnonzero(is_sample))


def _select_rows(index: ShardIndex, rows: Sequence[int] | Int64[np.ndarray, " rows"]) -> ShardIndex:
    row_ids = np.asarray(rows, np.int64)
    keys, labels = index.keys.select(row_ids), index.labels[row_ids]
    return replace(index, keys=keys, offsets=index.offsets[row_ids], sizes=index.sizes[row_ids], labels=labels)
