"""The members of a tar, listed from its headers.

Python's `tarfile` takes ten times as long, which is minutes for the millions of members of a large data set. The usual
headers, of files and directories, are therefore parsed here. From the first other header, such as that of a link, of a
long name or of the end, the tar is read by `tarfile`, which decides what is accepted.
"""

import os
import re
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Literal

from c2fmae.data.problems import Problem

_BLOCK = tarfile.BLOCKSIZE
"""In bytes; a tar consists of blocks and ends with two of zeros."""

_NUMBER = rb"[0-7]{6}[0-7 ][\0 ]"  # 8 bytes
_BINARY = rb"[\x80\xff]"  # how GNU tar begins a number that is too large for octal digits
_HEADER = re.compile(
    rb"(.{100})"  # name
    rb"%(number)b(?:%(number)b|%(binary)b.{7}){2}"  # mode, user and group
    rb"([0-7]{11})[\0 ]"  # size
    rb"(?:[0-7]{11}[\0 ]|%(binary)b.{11})"  # time
    rb"([0-7]{6}[0-7\0 ][\0 ])"  # checksum
    rb"([05x])"  # type: a file, a directory, or an extension of the next header
    rb".{172}"  # link, format and names of user and group
    rb"(?:%(number)b|\0{8}){2}"  # device
    rb"(.{155}).{12}" % {b"number": _NUMBER, b"binary": _BINARY},  # prefix of the name
    re.DOTALL,
)
_TIME_RECORD = re.compile(rb"(\d{1,3}) [amc]time=[\d.]+\n")


Kind = Literal["file", "directory", "sparse", "other"]

TarMember = tuple[str, Kind, int, int]
"""Path of a member without empty and `.` components, and the position and length of its content in bytes."""


def list_tar_members(tar_path: Path, file: BinaryIO, file_size: int, problems: list[Problem]) -> list[TarMember]:
    """Return the regular files in a tar that are complete and whose names stay inside it."""
    if file.read(2) == b"\x1f\x8b":
        command = (
            f"gunzip {tar_path}" if tar_path.suffix == ".gz" else f"mv {tar_path} {tar_path}.gz && gunzip {tar_path}.gz"
        )
        text = f"{tar_path}: compressed with gzip, so that samples cannot be read one by one. Decompress it: {command}"
        problems.append(Problem(None, text))
        return []
    members: list[TarMember] = []
    end = 0
    try:
        for member in _iterate_members(file):
            name, kind, offset, size = member
            end = offset + -(-size // _BLOCK) * _BLOCK
            if end > file_size and kind != "sparse":
                text = f"{tar_path}: truncated inside '{name}'. Copy or pack it again"
                problems.append(Problem(member_to_key(name), text))
                return members
            if name[0] == "/" or (".." in name and ".." in name.split("/")):
                text = f"{tar_path}: member '{name}' points outside the tar. Pack it with relative names"
                problems.append(Problem(member_to_key(name), text))
            elif kind == "file":
                members.append(member)
            elif kind != "directory":
                text = f"{tar_path}: member '{name}' is a link or a special file. Pack regular files"
                problems.append(Problem(member_to_key(name), text))
    except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
        problems.append(Problem(None, f"{tar_path}: not a complete tar ({error}). Copy or pack it again"))
        return members
    # tarfile takes a cut between two members, or a broken header, for the end of the file.
    file.seek(end)
    if file.read(_BLOCK) != bytes(_BLOCK):
        text = f"{tar_path}: not a complete tar (its end marker is missing). Copy or pack it again"
        problems.append(Problem(None, text))
    return members


def split_member_name(name: str) -> tuple[str, str]:
    """Return the key and the suffix of a member: its name up to the first dot of its last component, and the rest.

    >>> split_member_name("v1.0/cat.semantic.png"), split_member_name("README"), split_member_name("a/.hidden")
    (('v1.0/cat', 'semantic.png'), ('README', ''), ('', 'hidden'))
    """
    folder, slash, file_name = name.rpartition("/")
    stem, _, suffix = file_name.partition(".")
    return (f"{folder}{slash}{stem}" if stem else ""), suffix


def member_to_key(name: str) -> str | None:
    """Return the key of a member's sample; None if it has none."""
    return split_member_name(name)[0] or None


def _iterate_members(file: BinaryIO) -> Iterator[TarMember]:
    """Yield all members up to the end or the first invalid header; raise the errors of `tarfile`."""
    descriptor, offset = file.fileno(), 0
    while (member := _read_usual_member(descriptor, offset)) is not None:
        yield member
        offset = member[2] + -(-member[3] // _BLOCK) * _BLOCK
    file.seek(offset)
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for entry in tar:
            kind: Kind = "directory" if entry.isdir() else "other"
            if entry.isreg():
                kind = "sparse" if entry.issparse() else "file"
            yield _normalise_name(entry.name), kind, entry.offset_data, entry.size if entry.isreg() else 0


def _read_usual_member(descriptor: int, offset: int) -> TarMember | None:
    """Return the member whose header is at an offset, as `tarfile` would; None if the header is not a usual one."""
    header = os.pread(descriptor, _BLOCK, offset)
    match = _HEADER.fullmatch(header)
    if match is None:
        return None
    name, size, checksum, kind, prefix = match.groups()
    # Adler-32 has the sum of the bytes in its lower half, modulo 65521, which ASCII cannot exceed.
    total = (zlib.adler32(header) & 0xFFFF) - 1 if header.isascii() else sum(header)
    if total - sum(checksum) + 8 * ord(" ") != int(checksum.rstrip(b"\0 "), 8):
        return None
    if kind == b"x":
        is_short = 0 < int(size, 8) <= _BLOCK
        is_irrelevant = is_short and _has_only_times(os.pread(descriptor, _BLOCK, offset + _BLOCK))
        return _read_usual_member(descriptor, offset + 2 * _BLOCK) if is_irrelevant else None
    path = _decode_name(name)
    if kind == b"5":
        path = path.rstrip("/")
    if prefix[0]:
        path = f"{_decode_name(prefix)}/{path}"
    is_file = kind == b"0"
    return _normalise_name(path), "file" if is_file else "directory", offset + _BLOCK, int(size, 8) if is_file else 0


def _has_only_times(records: bytes) -> bool:
    """Return whether the records of an extended header are times, which need more digits than a header has."""
    end = 0
    while (record := _TIME_RECORD.match(records, end)) and int(record[1]) == record.end() - end:
        end = record.end()
    return not records[end:].strip(b"\0")


def _decode_name(field: bytes) -> str:
    return field.partition(b"\0")[0].decode(tarfile.ENCODING, "surrogateescape")


def _normalise_name(name: str) -> str:
    """Return a path without empty and `.` components."""
    short = name.removeprefix("./")
    is_normal = short[:1] not in ("", "/", ".") and short[-1] != "/" and "//" not in short and "/." not in short
    return short if is_normal else str(PurePosixPath(name))
