"""Indexes of tar shards: the byte ranges of all samples, for random access.

The index of SHARD.tar is built once and saved beside it as SHARD.tar.index, with the shard's size and modification
time; if those differ, it is built again. It is a line of JSON followed by plain arrays: a thousand indexes are read in
a second.
"""

import json
import logging
import os
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np
from jaxtyping import Int64

from c2fmae.core.errors import UserError
from c2fmae.core.files import open_file, read_error, read_file, write_atomic
from c2fmae.core.json_file import parse_json_object
from c2fmae.data.key_list import KeyList, is_utf8
from c2fmae.data.problems import Problem

log = logging.getLogger(__name__)

INDEX_SUFFIX = ".index"
_FORMAT = "c2fmae-index-1"
_BLOCK = 512  # bytes; a tar consists of blocks and ends with two of zeros
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
    """Return the index saved beside a tar, or build and save it if it is missing or outdated.

    `scan` builds it (`scan_shard` for a shard); `suffix` is added to the name of the tar. An index with problems is not
    saved, so that they are reported each time.
    """
    try:
        fingerprint = file_fingerprint(tar)
    except OSError as error:
        raise read_error(tar, error) from error
    path = tar.with_name(f"{tar.name}{suffix}")
    index = load_index(path, fingerprint)
    if index is None:
        log.info("indexing %s", tar)
        index = scan(tar)
        if not index.problems:
            save_index(index, path)
    return index


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
    """Save an index if its directory is writable; otherwise it is built again at each start."""
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
        for name, offset, size in list_tar_members(shard, file, fingerprint[0], problems):
            stem, _, suffix = name.name.partition(".")
            key = str(name.with_name(stem)) if stem else ""
            if not suffix or not stem:
                continue  # README, .hidden and the like
            if not is_utf8(key) or "\n" in key:
                text = f"{shard}: member {str(name)!r} is not a UTF-8 name without line breaks. Rename it"
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


def list_tar_members(
    tar_path: Path, file: BinaryIO, file_size: int, problems: list[Problem]
) -> list[tuple[PurePosixPath, int, int]]:
    """Return name, offset and size of the regular files in a tar that are complete and whose names stay inside it."""
    if file.read(2) == b"\x1f\x8b":
        command = (
            f"gunzip {tar_path}" if tar_path.suffix == ".gz" else f"mv {tar_path} {tar_path}.gz && gunzip {tar_path}.gz"
        )
        text = f"{tar_path}: compressed with gzip, so that samples cannot be read one by one. Decompress it: {command}"
        problems.append(Problem(None, text))
        return []
    file.seek(0)
    members: list[tuple[PurePosixPath, int, int]] = []
    end = 0
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                name = PurePosixPath(member.name)
                end = member.offset_data + -(-member.size // _BLOCK) * _BLOCK * member.isreg()
                if end > file_size and not member.issparse():
                    text = f"{tar_path}: truncated inside '{name}'. Copy or pack it again"
                    problems.append(Problem(_member_to_key(name), text))
                    return members
                if name.is_absolute() or ".." in name.parts:
                    text = f"{tar_path}: member '{name}' points outside the tar. Pack it with relative names"
                    problems.append(Problem(_member_to_key(name), text))
                elif member.isreg() and not member.issparse():
                    members.append((name, member.offset_data, member.size))
                elif not member.isdir():
                    text = f"{tar_path}: member '{name}' is a link or a special file. Pack regular files"
                    problems.append(Problem(_member_to_key(name), text))
    except (tarfile.TarError, ValueError, OverflowError) as error:
        problems.append(Problem(None, f"{tar_path}: not a complete tar ({error}). Copy or pack it again"))
        return members
    # tarfile takes a cut between two members, or a broken header, for the end of the file.
    file.seek(end)
    if file.read(_BLOCK) != bytes(_BLOCK):
        text = f"{tar_path}: not a complete tar (its end marker is missing). Copy or pack it again"
        problems.append(Problem(None, text))
    return members


def _member_to_key(name: PurePosixPath) -> str | None:
    stem = name.name.partition(".")[0]
    return str(name.with_name(stem)) if stem else None


def _read_label(file: BinaryIO, offset: int, size: int) -> int:
    text = os.pread(file.fileno(), min(size, 20), offset).strip()
    return int(text) if text.isdigit() and len(text) < 10 and size <= 20 else _BAD_LABEL
