import logging
import os
import shutil
from pathlib import Path

import pytest

from c2fmae.data.sources import open_scenes
from c2fmae.data.tar_index import open_index, scan_shard
from tests.data.stores import sample, samples, write_tar


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
    shard = write_tar(tmp_path / "s.tar", samples("abc") | {"b.cls": b"7"})
    made = open_index(shard)
    assert index_of(shard).exists()
    assert_same(open_index(shard), made)
    assert_same(scan_shard(shard), made)
    assert made.labels.tolist() == [-1, 7, -1]
    for row, key in enumerate(made.keys):
        for column, part in enumerate(made.parts):
            offset, size = int(made.offsets[row, column]), int(made.sizes[row, column])
            if size >= 0:
                stored = samples("abc") | {"b.cls": b"7"}
                assert shard.read_bytes()[offset : offset + size] == stored[f"{key}.{part}"]


def test_an_index_is_made_anew_when_its_shard_has_changed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shard = write_tar(tmp_path / "s.tar", samples("ab"))
    open_index(shard)
    other = write_tar(tmp_path / "other.tar", samples("cd"))
    assert other.stat().st_size == shard.stat().st_size
    shutil.copyfile(other, shard)
    os.utime(shard, ns=(1, 1))
    with caplog.at_level(logging.INFO):
        assert list(open_index(shard).keys) == ["c", "d"]
    assert caplog.messages == [f"indexing {shard}"]


@pytest.mark.parametrize("keep", [0, 1, 30, 150, -3])
def test_an_index_that_is_not_whole_is_made_anew(tmp_path: Path, keep: int) -> None:
    shard = write_tar(tmp_path / "s.tar", samples("ab"))
    made = open_index(shard)
    index_of(shard).write_bytes(index_of(shard).read_bytes()[:keep])
    assert_same(open_index(shard), made)


def test_a_folder_that_cannot_be_written_to_costs_nothing_but_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shard = write_tar(tmp_path / "s.tar", samples("ab"))
    index_of(shard).mkdir()  # no file can take its place
    with caplog.at_level(logging.INFO):
        assert list(open_index(shard).keys) == ["a", "b"]
    assert f"{index_of(shard)} cannot be kept" in caplog.text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.tar", "s.tar.index"]


def test_a_shard_with_problems_has_no_index_so_that_they_are_told_again(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "s.tar", samples("ab") | {"a.cls": b"cat"})
    assert len(open_index(shard).problems) == 1
    assert not index_of(shard).exists()


def test_an_empty_shard_has_an_empty_index(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "s.tar", {})
    for _ in range(2):
        assert len(open_index(shard).keys) == 0


def test_a_photo_may_be_stored_under_any_of_its_suffixes(tmp_path: Path) -> None:
    files, maps = sample("a")
    files["a.png"] = files.pop("a.jpg")
    scenes = open_scenes(write_tar(tmp_path / "s.tar", files | sample("b")[0]))
    assert scenes[0].maps["rgb"].permute(1, 2, 0).tolist() == maps["rgb"].tolist()
