"""Where everything lies in a tar shard, so that any sample is one read away.

The index of SHARD.tar is made once and kept beside it, as SHARD.tar.index, with the shard's size and time of change:
where they differ, it is made again. It holds a line of JSON and then plain arrays, so a thousand open in a second.
"""

import json
import logging
import os
import tarfile
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Int64

from c2fmae.core.errors import UserError
from c2fmae.data.key_list import KeyList, is_utf8
from c2fmae.data.problems import Problem

log = logging.getLogger(__name__)

INDEX_SUFFIX = ".index"
_FORMAT = "c2fmae-index-1"
_BLOCK = 512  # bytes: a tar is made of blocks, and ends with two of zeros
_NO_LABEL, _BAD_LABEL = -1, -2


@dataclass(frozen=True)
class ShardIndex:
    """The samples of one shard, in its own order."""

    fingerprint: tuple[int, int]
    """Size and time of change of the shard that this is the index of."""
    keys: KeyList
    suffixes: tuple[str, ...]
    """Suffixes, as in `KEY.semantic.png`."""
    offsets: Int64[np.ndarray, "samples parts"]
    sizes: Int64[np.ndarray, "samples parts"]
    """Bytes; -1 where a sample lacks the part."""
    labels: Int64[np.ndarray, " samples"]
    """What `KEY.cls` says; -1 where there is none."""
    problems: tuple[Problem, ...] = ()


def file_fingerprint(file: Path | int) -> tuple[int, int]:
    """Return what changes when a file does: its size and its time of change."""
    status = os.stat(file)  # noqa: PTH116 - or a descriptor
    return status.st_size, status.st_mtime_ns


def load_or_build_index(shard: Path) -> ShardIndex:
    """Return the index beside a shard, made now if there is none that fits."""
    try:
        stamp = file_fingerprint(shard)
    except OSError as error:
        raise UserError(f"{shard}: this shard cannot be opened: {error.strerror}. Check the path") from error
    path = shard.with_name(f"{shard.name}{INDEX_SUFFIX}")
    index = load_index(path, stamp)
    if index is None:
        log.info("indexing %s", shard)
        index = scan_shard(shard)
        if not index.problems:
            save_index(index, path)
    return index


def load_index(path: Path, fingerprint: tuple[int, int]) -> ShardIndex | None:
    """Return the index that a file holds, if it is whole and of a tar with this stamp."""
    try:
        data = path.read_bytes()
        line, _, rest = data.partition(b"\n")
        head: dict[str, Any] = json.loads(line)
        if head["format"] != _FORMAT or tuple(head["stamp"]) != fingerprint or head["crc"] != zlib.crc32(rest):
            return None
        suffixes, count = tuple(head["parts"]), head["samples"]
        numbers = np.frombuffer(rest, np.int64, count * (2 * len(suffixes) + 1))
        keys = KeyList(rest[numbers.nbytes :])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # not there, or not whole: it will be made anew
    offsets, sizes, labels = np.split(numbers, np.cumsum([count * len(suffixes)] * 2))
    shape = (count, len(suffixes))
    if len(keys) != count:
        return None
    return ShardIndex(fingerprint, keys, suffixes, offsets.reshape(shape), sizes.reshape(shape), labels)


def save_index(index: ShardIndex, path: Path) -> None:
    """Keep an index, if its folder can be written to."""
    rest = b"".join(array.tobytes() for array in (index.offsets, index.sizes, index.labels)) + index.keys.encoded
    head = {"format": _FORMAT, "stamp": index.fingerprint, "crc": zlib.crc32(rest)}
    head |= {"parts": index.suffixes, "samples": len(index.keys)}
    data = json.dumps(head).encode() + b"\n" + rest
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_bytes(data)
        unfinished.replace(path)
    except OSError as error:  # a folder that cannot be written to costs time at each start, and nothing else
        log.info("%s cannot be kept (%s): it is made anew each time", path, error.strerror)
        with suppress(OSError):
            unfinished.unlink()


def scan_shard(shard: Path) -> ShardIndex:
    """Read through a shard's headers; what is wrong with it is listed, and what is whole can be used."""
    problems: list[Problem] = []
    found: dict[str, dict[str, tuple[int, int]]] = {}
    labels: dict[str, int] = {}
    try:
        with shard.open("rb") as stream:
            stamp = file_fingerprint(stream.fileno())
            for name, offset, size in list_tar_members(shard, stream, stamp[0], problems):
                stem, _, suffix = name.name.partition(".")
                key = str(name.with_name(stem)) if stem else ""
                if not suffix or not stem:
                    continue  # README, .hidden and the like
                if not is_utf8(key) or "\n" in key:
                    problems.append(Problem(None, f"{shard}: member {str(name)!r} has no plain UTF-8 name. Rename it"))
                    continue
                if suffix in found.setdefault(key, {}):
                    problems.append(Problem(key, f"{shard}: member '{name}' is there twice. Pack every sample once"))
                    continue
                found[key][suffix] = (offset, size)
                if suffix == "cls":
                    labels[key] = _read_label(stream, offset, size)
    except OSError as error:
        raise UserError(f"{shard}: this shard cannot be read: {error.strerror}. Check its disk and rights") from error
    problems += [
        Problem(key, f"{shard}: {key}.cls is not a whole number from 0 on. Write the class's index")
        for key, label in labels.items()
        if label == _BAD_LABEL
    ]
    problem_keys = {problem.key for problem in problems}
    keys = [key for key in found if key not in problem_keys]
    suffixes = tuple(sorted({suffix for key in keys for suffix in found[key]}))
    byte_ranges = [[found[key].get(part, (0, -1)) for part in suffixes] for key in keys]
    table = np.array(byte_ranges, np.int64).reshape(len(keys), len(suffixes), 2)
    label_list = np.array([labels.get(key, _NO_LABEL) for key in keys], np.int64)
    offsets, sizes = (np.ascontiguousarray(table[..., i]) for i in (0, 1))
    return ShardIndex(stamp, KeyList.from_names(keys), suffixes, offsets, sizes, label_list, tuple(problems))


def list_tar_members(
    shard: Path, stream: BinaryIO, size: int, problems: list[Problem]
) -> list[tuple[PurePosixPath, int, int]]:
    """Return name, place and size of the plain files whose names are harmless and that lie in the shard whole."""
    if stream.read(2) == b"\x1f\x8b":
        unpack = f"gunzip {shard}" if shard.suffix == ".gz" else f"mv {shard} {shard}.gz && gunzip {shard}.gz"
        text = f"{shard}: compressed with gzip, so no sample can be read by itself. Unpack it: {unpack}"
        problems.append(Problem(None, text))
        return []
    stream.seek(0)
    members: list[tuple[PurePosixPath, int, int]] = []
    end = 0
    try:
        with tarfile.open(fileobj=stream, mode="r:") as tar:
            for member in tar:
                name = PurePosixPath(member.name)
                end = member.offset_data + -(-member.size // _BLOCK) * _BLOCK * member.isreg()
                if end > size and not member.issparse():
                    text = f"{shard}: cut short inside '{name}'. Copy or pack it again"
                    problems.append(Problem(_member_to_key(name), text))
                    return members
                if name.is_absolute() or ".." in name.parts:
                    text = f"{shard}: member '{name}' points out of the shard. Pack it with relative names"
                    problems.append(Problem(_member_to_key(name), text))
                elif member.isreg() and not member.issparse():
                    members.append((name, member.offset_data, member.size))
                elif not member.isdir():
                    text = f"{shard}: member '{name}' is a link or a special file. Pack plain files"
                    problems.append(Problem(_member_to_key(name), text))
    except (tarfile.TarError, ValueError, OverflowError) as error:
        problems.append(Problem(None, f"{shard}: not a whole tar ({error}). Copy or pack it again"))
        return members
    # A cut between two members, or a broken header, looks like the end to tarfile.
    stream.seek(end)
    if stream.read(_BLOCK) != bytes(_BLOCK):
        problems.append(Problem(None, f"{shard}: not a whole tar (its end mark is missing). Copy or pack it again"))
    return members


def _member_to_key(name: PurePosixPath) -> str | None:
    stem = name.name.partition(".")[0]
    return str(name.with_name(stem)) if stem else None


def _read_label(stream: BinaryIO, offset: int, size: int) -> int:
    text = os.pread(stream.fileno(), min(size, 20), offset).strip()
    return int(text) if text.isdigit() and len(text) < 10 and size <= 20 else _BAD_LABEL
