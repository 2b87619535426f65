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
from jaxtyping import Bool, Int64
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

_MAX_GAP = 4096
"""Bytes between members that are read in vain rather than with another request."""

_MAX_OPEN = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2  # the rest is for other files of the process


class ShardScenes(StoredScenes):
    """Scenes of the tar shards of one data set, in the order of the shards."""

    def __init__(self, shards: Sequence[Path], indices: Sequence[ShardIndex], info: DatasetInfo) -> None:
        keys = KeyList(b"".join(index.keys.encoded for index in indices))
        super().__init__(info, keys, np.concatenate([index.labels for index in indices]))
        self._shards = tuple(shards)
        self._fingerprints = tuple(index.fingerprint for index in indices)
        self._ends = list(accumulate(len(index.keys) for index in indices))
        members = [granularity_suffixes(name) for name in info.granularities]
        self._byte_ranges = _collect_byte_ranges(indices, members)
        self._object_ranges = _collect_byte_ranges(indices, [(OBJECTS_SUFFIX,)] if info.object_classes else [])
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
        return self._read_members(index, self._object_ranges.numpy()[index].tolist())[0]

    def _read_members(self, index: int, byte_ranges: Sequence[Sequence[int]]) -> list[bytes]:
        shard = bisect_right(self._ends, index)
        handle = self._open_files.get(shard) or self._open_shard(shard)  # this reference keeps it open until it is read
        try:
            chunks = _read_byte_ranges(handle.descriptor, byte_ranges)
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


def _read_byte_ranges(descriptor: int, byte_ranges: Sequence[Sequence[int]]) -> list[bytes]:
    """Read byte ranges of a file, with one request if they are neighbours: each may be a round trip to a server."""
    start = min(offset for offset, _ in byte_ranges)
    span = max(offset + size for offset, size in byte_ranges) - start
    if len(byte_ranges) == 1 or span - sum(size for _, size in byte_ranges) > len(byte_ranges) * _MAX_GAP:
        return [os.pread(descriptor, size, offset) for offset, size in byte_ranges]
    data = memoryview(os.pread(descriptor, span, start))
    return [bytes(data[offset - start : offset - start + size]) for offset, size in byte_ranges]


class _FileHandle:
    """A descriptor that is closed with its last reference, which another thread may hold."""

    def __init__(self, path: Path) -> None:
        self.descriptor = open_descriptor(path)

    def __del__(self) -> None:
        if "descriptor" in self.__dict__:
            os.close(self.descriptor)


def _collect_byte_ranges(
    indices: Sequence[ShardIndex], members: Sequence[Sequence[str]]
) -> Int64[Tensor, "samples members 2"]:
    """Return offset and size of some members of every sample; the size is -1 for a missing one.

    Each member is given by its possible suffixes. If a sample has several of them, the first is used.
    """
    byte_ranges = np.full((sum(len(index.keys) for index in indices), len(members), 2), (0, -1), np.int64)
    start = 0
    for index in indices:
        rows = byte_ranges[start : start + len(index.keys)]
        for member, suffixes in enumerate(members):
            for column in reversed(_find_columns(index, suffixes)):
                is_present = index.sizes[:, column] >= 0
                for entry, values in enumerate((index.offsets, index.sizes)):
                    np.copyto(rows[:, member, entry], values[:, column], where=is_present)
        start += len(index.keys)
    return torch.from_numpy(byte_ranges)


def _find_columns(index: ShardIndex, suffixes: Sequence[str]) -> list[int]:
    return [index.suffixes.index(suffix) for suffix in suffixes if suffix in index.suffixes]


def _has_member(index: ShardIndex, suffixes: Sequence[str]) -> Bool[np.ndarray, " samples"]:
    """Return whether each sample has a member with one of some suffixes."""
    is_present = index.sizes[:, _find_columns(index, suffixes)] >= 0
    return np.asarray(is_present.any(axis=1))


def _missing_problems(
    index: ShardIndex, granularities: Sequence[str], shard: Path, *, has_objects: bool
) -> dict[int, Problem]:
    """Return a problem for each row of a shard without one of the granularities, or without objects."""
    members = {GRANULARITIES.get(name).suffix: granularity_suffixes(name) for name in granularities}
    if has_objects:
        members[OBJECTS_SUFFIX] = (OBJECTS_SUFFIX,)
    problems = {}
    for suffix, suffixes in members.items():
        rows = np.flatnonzero(~_has_member(index, suffixes))
        for row, key in zip(rows.tolist(), index.keys.select(rows), strict=True):
            text = f"{shard}: sample {key!r} has no {key}.{suffix}. Add it, or remove the sample"
            problems[row] = Problem(key, text)
    return problems


def _find_repeated_keys(indices: Sequence[ShardIndex]) -> list[Int64[np.ndarray, " rows"]]:
    """Return the rows of each shard whose keys are in an earlier shard too.

    A set of a million names would take 150 MB. Hashes of 64 bits take 8, and only equal ones are compared by name.
    """
    hashes = [np.fromiter(map(hash, index.keys), np.int64, len(index.keys)) for index in indices]
    ordered = np.sort(np.concatenate(hashes))
    equal = ordered[1:][ordered[1:] == ordered[:-1]]
    seen, repeated = set[str](), []
    for index, key_hashes in zip(indices, hashes, strict=True):
        rows = np.flatnonzero(np.isin(key_hashes, equal)) if len(equal) else np.empty(0, np.int64)
        names = list(index.keys.select(rows))
        repeated.append(rows[[name in seen for name in names]])
        seen.update(names)
    return repeated


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
    complete_indices = []
    for shard, index, repeated_rows in zip(shards, indices, _find_repeated_keys(indices), strict=True):
        problem_by_row = _missing_problems(index, granularities, shard, has_objects=bool(object_classes))
        for row, key in zip(repeated_rows.tolist(), index.keys.select(repeated_rows), strict=True):
            text = f"{shard}: sample {key!r} is in another shard too. Pack every sample once"
            problem_by_row[row] = Problem(key, text)
        problems += problem_by_row.values()
        complete_indices.append(
            _select_rows(index, np.delete(np.arange(len(index.keys)), list(problem_by_row)))
            if problem_by_row
            else index
        )
    changes = {"granularities": granularities, "object_classes": object_classes}
    info = (info_on_disk or DatasetInfo()).model_copy(update=changes)
    scenes = ShardScenes(shards, complete_indices, info)
    return (scenes if len(scenes) else None), tuple(problems)


def _drop_non_samples(index: ShardIndex) -> ShardIndex:
    """Remove members without any granularity, such as a README."""
    is_sample = _has_member(index, [suffix for name in GRANULARITIES for suffix in granularity_suffixes(name)])
    return index if is_sample.all() else _select_rows(index, np.flatnonzero(is_sample))


def _select_rows(index: ShardIndex, rows: Int64[np.ndarray, " rows"]) -> ShardIndex:
    keys, labels = index.keys.select(rows), index.labels[rows]
    return replace(index, keys=keys, offsets=index.offsets[rows], sizes=index.sizes[rows], labels=labels)
