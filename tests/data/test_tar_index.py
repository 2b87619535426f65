import json
import logging
import os
import shutil
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Event

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from c2fmae.core.errors import UserError
from c2fmae.data.sources import inspect_scenes, open_scenes
from c2fmae.data.tar_index import ShardIndex, load_or_build_index, save_index, scan_shard
from tests.data.dataset_files import make_sample, make_samples, write_tar


def assert_same(first: object, second: object) -> None:
    for name, value in vars(first).items():
        other = getattr(second, name)
        if hasattr(value, "tolist"):
            assert value.tolist() == other.tolist()
        else:
            assert list(value) == list(other)


def index_of(shard: Path) -> Path:
    return shard.with_name(f"{shard.name}.index")


def test_the_index_is_saved_beside_the_shard_and_equals_a_scan(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "s.tar", make_samples("abc") | {"b.cls": b"7"})
    built = load_or_build_index(shard, scan_shard)
    assert index_of(shard).exists()
    assert_same(load_or_build_index(shard, scan_shard), built)
    assert_same(scan_shard(shard), built)
    assert built.labels.tolist() == [-1, 7, -1]
    for row, key in enumerate(built.keys):
        for column, part in enumerate(built.suffixes):
            offset, size = int(built.offsets[row, column]), int(built.sizes[row, column])
            if size >= 0:
                stored = make_samples("abc") | {"b.cls": b"7"}
                assert shard.read_bytes()[offset : offset + size] == stored[f"{key}.{part}"]


def test_an_index_is_rebuilt_when_its_shard_has_changed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shard = write_tar(tmp_path / "s.tar", make_samples("ab"))
    load_or_build_index(shard, scan_shard)
    other = write_tar(tmp_path / "other.tar", make_samples("cd"))
    assert other.stat().st_size == shard.stat().st_size
    shutil.copyfile(other, shard)
    os.utime(shard, ns=(1, 1))
    with caplog.at_level(logging.INFO):
        assert list(load_or_build_index(shard, scan_shard).keys) == ["c", "d"]
    assert caplog.messages == [f"indexing {shard}"]


@pytest.mark.parametrize("length", [0, 1, 30, 150, -3])
def test_a_truncated_index_is_rebuilt(tmp_path: Path, length: int) -> None:
    shard = write_tar(tmp_path / "s.tar", make_samples("ab"))
    built = load_or_build_index(shard, scan_shard)
    index_of(shard).write_bytes(index_of(shard).read_bytes()[:length])
    assert_same(load_or_build_index(shard, scan_shard), built)


def test_an_index_that_cannot_be_saved_is_built_again_each_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shard = write_tar(tmp_path / "s.tar", make_samples("ab"))
    index_of(shard).mkdir()  # no file can replace it
    with caplog.at_level(logging.INFO):
        assert list(load_or_build_index(shard, scan_shard).keys) == ["a", "b"]
    assert f"index not saved: {index_of(shard)}: cannot be written" in caplog.text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.tar", "s.tar.index"]


def test_the_index_of_a_shard_with_problems_is_not_saved(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "s.tar", make_samples("ab") | {"a.cls": b"cat"})
    assert len(load_or_build_index(shard, scan_shard).problems) == 1
    assert not index_of(shard).exists()


def test_an_empty_shard_has_an_empty_index(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "s.tar", {})
    for _ in range(2):
        assert len(load_or_build_index(shard, scan_shard).keys) == 0


def test_an_image_may_have_any_of_its_suffixes(tmp_path: Path) -> None:
    files, maps = make_sample("a")
    files["a.png"] = files.pop("a.jpg")
    scenes = open_scenes(write_tar(tmp_path / "s.tar", files | make_sample("b")[0]))
    assert scenes[0].maps["rgb"].permute(1, 2, 0).tolist() == maps["rgb"].tolist()


MEMBERS = make_samples("abc") | {"a.cls": b"1", "dir/d.jpg": b"not an image"}


@pytest.fixture(scope="module")
def shard_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_tar(tmp_path_factory.mktemp("shard") / "s.tar", MEMBERS).read_bytes()


def check_survives(folder: Path, data: bytes) -> None:
    """Open the shard or refuse it; every scene decodes or raises a `UserError`."""
    shard = folder / "s.tar"
    shard.write_bytes(data)
    index_of(shard).unlink(missing_ok=True)
    with suppress(UserError):
        scenes, problems = inspect_scenes(shard, granularities=("rgb",))
        assert scenes is not None or problems
        for index in range(len(scenes or ())):
            assert scenes is not None
            with suppress(UserError):
                scenes[index]


@pytest.mark.parametrize("tenth", range(10))
def test_a_shard_truncated_anywhere_is_read_up_to_there_or_refused(
    tmp_path: Path, shard_bytes: bytes, tenth: int
) -> None:
    content = len(shard_bytes.rstrip(b"\0"))
    check_survives(tmp_path, shard_bytes[: content * tenth // 10])
    assert inspect_scenes(tmp_path / "s.tar", granularities=("rgb",))[1]


@given(data=st.binary(max_size=2000))
def test_random_bytes_are_refused_without_a_crash(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    check_survives(tmp_path_factory.mktemp("fuzz"), data)


@given(changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=20))
def test_a_shard_with_changed_bytes_never_crashes(
    tmp_path_factory: pytest.TempPathFactory, shard_bytes: bytes, changes: list[tuple[float, int]]
) -> None:
    data = bytearray(shard_bytes)
    for position, value in changes:
        data[int(position * (len(data) - 1))] = value
    check_survives(tmp_path_factory.mktemp("fuzz"), bytes(data))


@given(changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=8))
def test_an_index_with_changed_bytes_is_rebuilt(
    tmp_path_factory: pytest.TempPathFactory, shard_bytes: bytes, changes: list[tuple[float, int]]
) -> None:
    shard = tmp_path_factory.mktemp("fuzz") / "s.tar"
    shard.write_bytes(shard_bytes)
    load_or_build_index(shard, scan_shard)
    data = bytearray(index_of(shard).read_bytes())
    for position, value in changes:
        data[int(position * (len(data) - 1))] = value
    index_of(shard).write_bytes(data)
    scenes = open_scenes(shard, granularities=("rgb",), keys=["a"])  # rebuilt, whatever was changed
    assert scenes[0].maps["rgb"].tolist() == make_sample("a", 0)[1]["rgb"].transpose(2, 0, 1).tolist()


@pytest.mark.parametrize(
    ("name", "value"), [("offsets", -1), ("offsets", 1 << 40), ("sizes", 1 << 60), ("sizes", -2), ("labels", -5)]
)
def test_an_index_with_entries_beyond_the_shard_is_rebuilt(tmp_path: Path, name: str, value: int) -> None:
    shard = write_tar(tmp_path / "s.tar", make_samples("ab"))
    index = load_or_build_index(shard, scan_shard)
    damaged = replace(index, **{name: np.full_like(getattr(index, name), value)})
    save_index(damaged, index_of(shard))
    assert_same(load_or_build_index(shard, scan_shard), index)


def test_an_index_with_keys_that_are_no_text_is_rebuilt(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "s.tar", make_samples("ab"))
    index = load_or_build_index(shard, scan_shard)
    head, _, rest = index_of(shard).read_bytes().partition(b"\n")
    rest = rest.replace(b"a\nb\n", b"\xff\nb\n")
    index_of(shard).write_bytes(json.dumps(json.loads(head) | {"crc": zlib.crc32(rest)}).encode() + b"\n" + rest)
    assert_same(load_or_build_index(shard, scan_shard), index)


def never_scan(shard: Path) -> ShardIndex:
    raise AssertionError(f"{shard} was indexed again")


@pytest.fixture
def read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a shard whose directory is not writable, with a cache directory beside it."""
    monkeypatch.setenv("C2FMAE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    (tmp_path / "pack").mkdir()
    return write_tar(tmp_path / "pack/s.tar", make_samples("ab"))


def test_the_index_of_a_read_only_shard_is_saved_in_the_cache(read_only: Path, tmp_path: Path) -> None:
    index = load_or_build_index(read_only, scan_shard)
    assert_same(load_or_build_index(read_only, never_scan), index)
    assert [path.name for path in read_only.parent.iterdir()] == ["s.tar"]
    assert [path.name for path in (tmp_path / "cache").rglob("*.*")] == ["s.tar.index"]
    (tmp_path / "other/pack").mkdir(parents=True)
    other = write_tar(tmp_path / "other/pack/s.tar", make_samples("abc"))
    assert len(load_or_build_index(other, scan_shard).keys) == 3
    assert_same(load_or_build_index(read_only, never_scan), index)


def test_an_index_beside_a_read_only_shard_is_used(read_only: Path, tmp_path: Path) -> None:
    index = scan_shard(read_only)
    save_index(index, index_of(read_only))
    assert_same(load_or_build_index(read_only, never_scan), index)
    assert not (tmp_path / "cache").exists()


def test_without_a_writable_directory_the_index_is_built_each_time(
    read_only: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("C2FMAE_CACHE", "/proc/none")
    with caplog.at_level(logging.INFO):
        assert list(load_or_build_index(read_only, scan_shard).keys) == ["a", "b"]
    assert caplog.messages[0] == f"indexing {read_only}"
    assert caplog.messages[1].startswith("index not saved: /proc/none/pack-")


def test_one_process_indexes_and_the_others_wait(tmp_path: Path) -> None:
    shard, is_scanning, may_end = write_tar(tmp_path / "s.tar", make_samples("ab")), Event(), Event()

    def scan_slowly(path: Path) -> ShardIndex:
        is_scanning.set()
        assert may_end.wait(60)
        return scan_shard(path)

    with ThreadPoolExecutor() as pool:  # the locks of two threads exclude each other like those of two processes
        first = pool.submit(load_or_build_index, shard, scan_slowly)
        assert is_scanning.wait(60)
        second = pool.submit(load_or_build_index, shard, never_scan)
        may_end.set()
        assert_same(first.result(), second.result())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.tar", "s.tar.index"]
