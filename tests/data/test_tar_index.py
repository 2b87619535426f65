import logging
import os
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from c2fmae.core.errors import UserError
from c2fmae.data.sources import inspect_scenes, open_scenes
from c2fmae.data.tar_index import load_or_build_index, scan_shard
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


def test_the_index_is_kept_beside_the_shard_and_says_what_a_scan_says(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "s.tar", make_samples("abc") | {"b.cls": b"7"})
    made = load_or_build_index(shard)
    assert index_of(shard).exists()
    assert_same(load_or_build_index(shard), made)
    assert_same(scan_shard(shard), made)
    assert made.labels.tolist() == [-1, 7, -1]
    for row, key in enumerate(made.keys):
        for column, part in enumerate(made.suffixes):
            offset, size = int(made.offsets[row, column]), int(made.sizes[row, column])
            if size >= 0:
                stored = make_samples("abc") | {"b.cls": b"7"}
                assert shard.read_bytes()[offset : offset + size] == stored[f"{key}.{part}"]


def test_an_index_is_made_anew_when_its_shard_has_changed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shard = write_tar(tmp_path / "s.tar", make_samples("ab"))
    load_or_build_index(shard)
    other = write_tar(tmp_path / "other.tar", make_samples("cd"))
    assert other.stat().st_size == shard.stat().st_size
    shutil.copyfile(other, shard)
    os.utime(shard, ns=(1, 1))
    with caplog.at_level(logging.INFO):
        assert list(load_or_build_index(shard).keys) == ["c", "d"]
    assert caplog.messages == [f"indexing {shard}"]


@pytest.mark.parametrize("keep", [0, 1, 30, 150, -3])
def test_an_index_that_is_not_whole_is_made_anew(tmp_path: Path, keep: int) -> None:
    shard = write_tar(tmp_path / "s.tar", make_samples("ab"))
    made = load_or_build_index(shard)
    index_of(shard).write_bytes(index_of(shard).read_bytes()[:keep])
    assert_same(load_or_build_index(shard), made)


def test_a_folder_that_cannot_be_written_to_costs_nothing_but_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shard = write_tar(tmp_path / "s.tar", make_samples("ab"))
    index_of(shard).mkdir()  # no file can take its place
    with caplog.at_level(logging.INFO):
        assert list(load_or_build_index(shard).keys) == ["a", "b"]
    assert f"{index_of(shard)} cannot be kept" in caplog.text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.tar", "s.tar.index"]


def test_a_shard_with_problems_has_no_index_so_that_they_are_told_again(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "s.tar", make_samples("ab") | {"a.cls": b"cat"})
    assert len(load_or_build_index(shard).problems) == 1
    assert not index_of(shard).exists()


def test_an_empty_shard_has_an_empty_index(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "s.tar", {})
    for _ in range(2):
        assert len(load_or_build_index(shard).keys) == 0


def test_a_photo_may_be_stored_under_any_of_its_suffixes(tmp_path: Path) -> None:
    files, maps = make_sample("a")
    files["a.png"] = files.pop("a.jpg")
    scenes = open_scenes(write_tar(tmp_path / "s.tar", files | make_sample("b")[0]))
    assert scenes[0].maps["rgb"].permute(1, 2, 0).tolist() == maps["rgb"].tolist()


WHOLE = make_samples("abc") | {"a.cls": b"1", "dir/d.jpg": b"not a picture"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_tar(tmp_path_factory.mktemp("whole") / "s.tar", WHOLE).read_bytes()


def survives(folder: Path, data: bytes) -> None:
    """Either opens or is refused; scenes that are there are whole or refused by name."""
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
def test_a_shard_cut_at_any_tenth_is_read_up_to_there_or_refused(tmp_path: Path, whole: bytes, tenth: int) -> None:
    content = len(whole.rstrip(b"\0"))
    survives(tmp_path, whole[: content * tenth // 10])
    assert inspect_scenes(tmp_path / "s.tar", granularities=("rgb",))[1]


@given(data=st.binary(max_size=2000))
def test_random_bytes_do_no_harm(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    survives(tmp_path_factory.mktemp("fuzz"), data)


@given(changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=20))
def test_changed_bytes_do_no_harm(
    tmp_path_factory: pytest.TempPathFactory, whole: bytes, changes: list[tuple[float, int]]
) -> None:
    data = bytearray(whole)
    for place, value in changes:
        data[int(place * (len(data) - 1))] = value
    survives(tmp_path_factory.mktemp("fuzz"), bytes(data))


@given(changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=8))
def test_changed_bytes_of_an_index_do_no_harm(
    tmp_path_factory: pytest.TempPathFactory, whole: bytes, changes: list[tuple[float, int]]
) -> None:
    shard = tmp_path_factory.mktemp("fuzz") / "s.tar"
    shard.write_bytes(whole)
    load_or_build_index(shard)
    data = bytearray(index_of(shard).read_bytes())
    for place, value in changes:
        data[int(place * (len(data) - 1))] = value
    index_of(shard).write_bytes(data)
    scenes = open_scenes(shard, granularities=("rgb",), keys=["a"])  # made anew, whatever was changed
    assert scenes[0].maps["rgb"].tolist() == make_sample("a", 0)[1]["rgb"].transpose(2, 0, 1).tolist()
