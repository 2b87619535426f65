import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from c2fmae.data import tar_members
from c2fmae.data.encode import TAR_END, encode_tar_member
from c2fmae.data.problems import Problem
from c2fmae.data.tar_members import list_tar_members

BLOCK = 512
Listing = tuple[list[tuple[str, int, int]], list[Problem]]


def list_with_tarfile(path: Path) -> Listing:
    """List a tar's regular files, and its problems, by `tarfile` alone."""
    members, problems, end = list[tuple[str, int, int]](), list[Problem](), 0

    def add_problem(name: PurePosixPath, text: str) -> None:
        stem = name.name.partition(".")[0]
        problems.append(Problem(str(name.with_name(stem)) if stem else None, f"{path}: {text}"))

    with path.open("rb") as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    name = PurePosixPath(member.name)
                    end = member.offset_data + -(-member.size // BLOCK) * BLOCK * member.isreg()
                    if end > path.stat().st_size and not member.issparse():
                        add_problem(name, f"truncated inside '{name}'. Copy or pack it again")
                        return members, problems
                    if name.is_absolute() or ".." in name.parts:
                        add_problem(name, f"member '{name}' points outside the tar. Pack it with relative names")
                    elif member.isreg() and not member.issparse():
                        members.append((str(name), member.offset_data, member.size))
                    elif not member.isdir():
                        add_problem(name, f"member '{name}' is a link or a special file. Pack regular files")
        except (tarfile.TarError, ValueError, OverflowError) as error:
            problems.append(Problem(None, f"{path}: not a complete tar ({error}). Copy or pack it again"))
            return members, problems
        file.seek(end)
        if file.read(BLOCK) != bytes(BLOCK):
            text = f"{path}: not a complete tar (its end marker is missing). Copy or pack it again"
            problems.append(Problem(None, text))
    return members, problems


def list_members(path: Path) -> Listing:
    problems = list[Problem]()
    with path.open("rb") as file:
        members = list_tar_members(path, file, path.stat().st_size, problems)
    return [(name, offset, size) for name, _, offset, size in members], problems


NAMES = st.one_of(
    st.text("ab./", min_size=1, max_size=8),
    st.text(min_size=1, max_size=4).filter(lambda name: "\0" not in name),
    st.integers(90, 300).map(lambda length: f"{'d' * (length // 2)}/{'f' * (length - length // 2)}.jpg"),
    st.just("é" * 3 + ".jpg"),
)
KINDS = st.sampled_from(
    [*[tarfile.REGTYPE] * 6, tarfile.AREGTYPE, tarfile.CONTTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.FIFOTYPE]
)
TIMES = st.sampled_from([0, 1_700_000_000, 1_700_000_000.25, -1, 8**11])
USERS = st.sampled_from([0, 1000, 8**7 - 1, 8**7, 3_000_000_000])


@st.composite
def tars(draw: st.DrawFn) -> bytes:
    """Draw a tar of some writer, perhaps damaged."""
    stream = io.BytesIO()
    style = draw(st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
    with tarfile.open(fileobj=stream, mode="w", format=style, encoding="utf-8", errors="surrogateescape") as tar:
        for name in draw(st.lists(NAMES, max_size=5)):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mtime, entry.uid = draw(KINDS), draw(TIMES), draw(USERS)
            content = bytes(draw(st.sampled_from([0, 1, 511, 512, 513, 1500])))
            entry.size = len(content) if entry.isreg() else 0
            if style == tarfile.PAX_FORMAT:
                entry.pax_headers = draw(st.sampled_from([{}, {"atime": "1.5", "ctime": "2"}, {"comment": "x"}]))
            try:
                tar.addfile(entry, io.BytesIO(content))
            except ValueError:  # USTAR cannot represent it
                continue
    data = bytearray(stream.getvalue())
    data = data[: max(len(data) - draw(st.sampled_from([0, 0, 0, 512, 9_000, 10_000, 10_240, 11_000])), 0)]
    for position, value in draw(st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), max_size=2)):
        if position < len(data):
            data[position] = value
    return bytes(data)


@given(data=tars())
def test_any_tar_is_listed_as_by_tarfile(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.tar"
    path.write_bytes(data)
    assert list_members(path) == list_with_tarfile(path)


def with_checksum(header: bytes, form: str = "%06o\0 ", *, missing: int = 0) -> bytes:
    """Return a header with the checksum of its bytes, or one that is too small."""
    total = sum(header) - sum(header[148:156]) + 8 * ord(" ") - missing
    return header[:148] + (form % total).encode() + header[156:]


def edited(start: int, content: bytes) -> Callable[[bytes], bytes]:
    return lambda header: with_checksum(header[:start] + content + header[start + len(content) :])


HEADERS: dict[str, tuple[bool, Callable[[bytes], bytes]]] = {
    "unchanged": (True, lambda header: header),
    "numbers of libarchive": (True, edited(100, b"000644 \0" * 3 + b"00000000003 00000000007 ")),
    "a large user of GNU tar": (True, edited(108, b"\x80\0\0\0\xb2\xd0\x5e\0")),
    "a time that is negative": (True, edited(136, b"\xff" * 12)),
    "no device": (True, edited(329, bytes(16))),
    "a checksum of seven digits": (True, lambda header: with_checksum(header, "%07o\0")),
    "a checksum with spaces": (True, lambda header: with_checksum(header, "%06o \0")),
    "a prefix": (True, edited(345, b"a/b")),
    "a prefix of two folders and a slash": (True, edited(345, b"./a//")),
    "a name with a point as a folder": (True, edited(0, b"x/./b.jpg\0")),
    "a name with bytes after its end": (True, edited(20, b"more")),
    "a name that is not UTF-8": (True, edited(0, b"\xff\xfe.jpg\0")),
    "no name": (True, edited(0, bytes(100))),
    "a folder": (True, edited(156, b"5")),
    "a size in binary": (False, edited(124, b"\x80" + bytes(10) + b"\x03")),
    "a negative size": (False, edited(124, b"-0000000003\0")),
    "a size with an underscore": (False, edited(124, b"0000000_003\0")),
    "no mode": (False, edited(100, bytes(8))),
    "a wrong checksum": (False, lambda header: header[:148] + b"000001\0 " + header[156:]),
    "a checksum that is wrong by the modulus of Adler-32": (
        False,
        lambda header: with_checksum(
            header[:157] + b"\xff" * 100 + header[257:265] + b"\xff" * 64 + header[329:345] + b"\xff" * 155 + bytes(12),
            missing=65521,
        ),
    ),
    "an unknown type": (False, edited(156, b"A")),
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers_of_other_writers_are_read_as_by_tarfile(name: str, tmp_path: Path) -> None:
    is_usual, change = HEADERS[name]
    member, path = encode_tar_member("x/b.jpg", b"two"), tmp_path / "s.tar"
    path.write_bytes(encode_tar_member("a.jpg", b"1") + change(member[:BLOCK]) + member[BLOCK:] + TAR_END)
    assert list_members(path) == list_with_tarfile(path)
    with path.open("rb") as file:
        assert (tar_members._read_usual_member(file.fileno(), 2 * BLOCK) is not None) == is_usual


def extended_header(records: bytes) -> bytes:
    block = encode_tar_member("PaxHeaders/a", records)
    return edited(156, b"x")(block[:BLOCK]) + block[BLOCK:]


@pytest.mark.parametrize(
    ("records", "is_usual"),
    [
        (b"22 mtime=1700000000.5\n", True),
        (b"11 mtime=1\n11 atime=2\n11 ctime=3\n", True),
        (b"18 path=other.jpg\n", False),
        (b"10 size=7\n", False),
        (b"12 mtime=1\n", False),
        (b"11 mtime=1\n18 path=other.jpg\n", False),
        (b"0 mtime=1\n", False),
        (b"", False),
    ],
)
def test_extended_headers_are_read_as_by_tarfile(records: bytes, is_usual: bool, tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    following = encode_tar_member("a.jpg", b"1") + encode_tar_member("b.jpg", b"2") + TAR_END
    path.write_bytes(extended_header(records) + following)
    assert list_members(path) == list_with_tarfile(path)
    with path.open("rb") as file:
        assert (tar_members._read_usual_member(file.fileno(), 0) is not None) == is_usual


@pytest.mark.parametrize("style", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tars_of_common_writers_need_no_tarfile(style: int, tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w", format=style) as tar:
        for number in range(3):
            entry = tarfile.TarInfo(f"./images/{number}.jpg")
            entry.size, entry.mtime = 3, 1_700_000_000 + (0.5 if style == tarfile.PAX_FORMAT else 0)
            tar.addfile(entry, io.BytesIO(b"one"))
    names, end = list[str](), 0
    with path.open("rb") as file:
        while (member := tar_members._read_usual_member(file.fileno(), end)) is not None:
            names.append(member[0])
            end = member[2] + BLOCK
        assert names == [f"images/{number}.jpg" for number in range(3)]
        assert os.pread(file.fileno(), BLOCK, end) == bytes(BLOCK)
