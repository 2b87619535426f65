"""Indexes of tar shards: the byte ranges of all samples, for random access.

The index of SHARD.tar is built once and saved beside it as SHARD.tar.index, or in the user's cache if the directory is
not writable, with the shard's size and modification time; if those differ, it is built again. It is a line of JSON
followed by plain arrays: a thousand indexes are read in a second.
"""

import hashlib
import json
import logging
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import Int64

from c2fmae.core.errors import UserError
from c2fmae.core.files import default_cache_dir, open_file, read_error, read_file, write_atomic
from c2fmae.core.json_file import parse_json_object
from c2fmae.core.locks import LOCK_SUFFIX, lock_file
from c2fmae.data.key_list import KeyList, is_utf8
from c2fmae.data.problems import Problem
from c2fmae.data.tar_members import list_tar_members, split_member_name

log = logging.getLogger(__name__)

INDEX_SUFFIX = ".index"
_FORMAT = "c2fmae-index-1"
_NO_LABEL, _BAD_LABEL = -1, -2


@dataclass(frozen=True)
class ShardIndex:
    """The samples of one shard, in its order."""

    fingerprint: tuple[int, int]
    """`file_fingerprint` of the shard when it was indexed."""
    keys: KeyList
    suffixes: tuple[str, ...]
    """Suffixes of members after the key, such as `semantic.png`."""
    offsets: Int64[np.ndarray, "samples suffixes"]
    sizes: Int64[np.ndarray, "samples suffixes"]
    """In bytes; -1 for a member that a sample does not have."""
    labels: Int64[np.ndarray, " samples"]
    """Content of `KEY.cls`; -1 without one."""
    problems: tuple[Problem, ...] = ()


def file_fingerprint(file: Path | int) -> tuple[int, int]:
    """Return the size and the modification time of a file or descriptor, at least one of which changes with content."""
    status = os.stat(file)  # noqa: PTH116 - or a descriptor
    return status.st_size, status.st_mtime_ns


def load_or_build_index(tar: Path, scan: Callable[[Path], ShardIndex], suffix: str = INDEX_SUFFIX) -> ShardIndex:
    """Return the saved index of a tar, or build and save it if it is missing or outdated.

    `scan` builds it (`scan_shard` for a shard); `suffix` is added to the name of the tar. One process builds it and
    others wait for it. An index with problems is not saved, so that they are reported each time.
    """
    try:
        fingerprint = file_fingerprint(tar)
    except OSError as error:
        raise read_error(tar, error) from error
    paths = _index_paths(tar, suffix)
    if (index := _load_first(paths, fingerprint)) is not None:
        return index
    with _lock_index(paths[-1]):
        index = _load_first(paths, fingerprint)  # another process may have built it meanwhile
        if index is None:
            log.info("indexing %s", tar)
            index = _build_index(tar, scan, paths[-1])
    return index


def index_new_shard(shard: Path) -> None:
    """Save the index of a shard that this process has written: its headers are still in memory."""
    _build_index(shard, scan_shard, shard.with_name(f"{shard.name}{INDEX_SUFFIX}"))


def _build_index(tar: Path, scan: Callable[[Path], ShardIndex], path: Path) -> ShardIndex:
    index = scan(tar)
    if not index.problems:
        save_index(index, path)
    return index


def _index_paths(tar: Path, suffix: str) -> list[Path]:
    """Return where the index of a tar may be saved; the last is writable if any is."""
    beside = tar.with_name(f"{tar.name}{suffix}")
    if os.access(tar.parent, os.W_OK):
        return [beside]
    folder = tar.parent.resolve()
    digest = hashlib.blake2b(os.fsencode(folder), digest_size=8).hexdigest()
    return [beside, default_cache_dir() / f"{folder.name}-{digest}" / beside.name]


def _load_first(paths: Iterable[Path], fingerprint: tuple[int, int]) -> ShardIndex | None:
    return next((index for path in paths if (index := load_index(path, fingerprint)) is not None), None)


@contextmanager
def _lock_index(path: Path) -> Iterator[None]:
    """Lock an index, and wait while another process has locked it; do nothing where no file can be created."""
    with ExitStack() as stack:
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(lock_file(path.with_name(f".{path.name}{LOCK_SUFFIX}")))
        yield


def load_index(path: Path, fingerprint: tuple[int, int]) -> ShardIndex | None:
    """Return the index in a file; None if it is missing, damaged, or of a tar with another fingerprint.

    Its checksum may be that of wrong entries, so all are checked to be inside of the tar.
    """
    try:
        line, _, rest = read_file(path).partition(b"\n")
        head = parse_json_object(line)
        if head["format"] != _FORMAT or tuple(head["stamp"]) != fingerprint or head["crc"] != zlib.crc32(rest):
            return None
        suffixes, count = tuple(head["parts"]), head["samples"]
        numbers = np.frombuffer(rest, np.int64, count * (2 * len(suffixes) + 1))
        encoded_keys = rest[numbers.nbytes :]
        encoded_keys.decode()
    except (ValueError, KeyError, TypeError, OverflowError):  # a UserError is a ValueError
        return None
    keys = KeyList(encoded_keys)
    offsets, sizes, labels = np.split(numbers, np.cumsum([count * len(suffixes)] * 2))
    is_inside = (offsets >= 0) & (sizes >= -1) & (offsets <= fingerprint[0]) & (sizes <= fingerprint[0] - offsets)
    is_valid = is_inside.all() and (labels >= _NO_LABEL).all() and all(isinstance(suffix, str) for suffix in suffixes)
    if len(keys) != count or not is_valid:
        return None
    shape = (count, len(suffixes))
    return ShardIndex(fingerprint, keys, suffixes, offsets.reshape(shape), sizes.reshape(shape), labels)


def save_index(index: ShardIndex, path: Path) -> None:
    """Save an index. One that cannot be saved is built again at each start."""
    rest = b"".join(array.tobytes() for array in (index.offsets, index.sizes, index.labels)) + index.keys.encoded
    head = {"format": _FORMAT, "stamp": index.fingerprint, "crc": zlib.crc32(rest)}
    head |= {"parts": index.suffixes, "samples": len(index.keys)}
    try:
        write_atomic(path, json.dumps(head).encode() + b"\n" + rest, is_shared=True)
    except UserError as error:
        log.info("index not saved: %s", error)


def scan_shard(shard: Path) -> ShardIndex:
    """Build the index of a shard from its headers; samples with problems are left out."""
    problems: list[Problem] = []
    members: dict[str, dict[str, tuple[int, int]]] = {}
    labels: dict[str, int] = {}
    with open_file(shard) as file:
        fingerprint = file_fingerprint(file.fileno())
        for name, _, offset, size in list_tar_members(shard, file, fingerprint[0], problems):
            key, suffix = split_member_name(name)
            if not suffix or not key:
                continue  # README, .hidden and the like
            if not is_utf8(key) or "\n" in key:
                text = f"{shard}: member {name!r} is not a UTF-8 name without line breaks. Rename it"
                problems.append(Problem(None, text))
                continue
            if suffix in members.setdefault(key, {}):
                problems.append(Problem(key, f"{shard}: has member '{name}' twice. Pack every sample once"))
                continue
            members[key][suffix] = (offset, size)
            if suffix == "cls":
                labels[key] = _read_label(file, offset, size)
    problems += [
        Problem(key, f"{shard}: {key}.cls is not an integer of at least 0. Write the index of the class")
        for key, label in labels.items()
        if label == _BAD_LABEL
    ]
    problem_keys = {problem.key for problem in problems}
    keys = [key for key in members if key not in problem_keys]
    suffixes = tuple(sorted({suffix for key in keys for suffix in members[key]}))
    byte_ranges = [[members[key].get(suffix, (0, -1)) for suffix in suffixes] for key in keys]
    table = np.array(byte_ranges, np.int64).reshape(len(keys), len(suffixes), 2)
    label_array = np.array([labels.get(key, _NO_LABEL) for key in keys], np.int64)
    offsets, sizes = (np.ascontiguousarray(table[..., i]) for i in (0, 1))
    return ShardIndex(fingerprint, KeyList.from_names(keys), suffixes, offsets, sizes, label_array, tuple(problems))


def _read_label(file: BinaryIO, offset: int, size: int) -> int:
    text = os.pread(file.fileno(), min(size, 20), offset).strip()
    return int(text) if text.isdigit() and len(text) < 10 and size <= 20 else _BAD_LABEL
