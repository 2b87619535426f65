import json
import logging
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from c2fmae.data.sources import open_scenes
from tests.data.dataset_files import DATASET, assert_user_error, make_samples, write_tar


@pytest.fixture(autouse=True)
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[fsspec.AbstractFileSystem]:
    """A file system in memory with two shards of one set and one of another, and an empty cache."""
    monkeypatch.setenv("C2FMAE_CACHE", str(tmp_path / "cache"))
    memory = fsspec.filesystem("memory")
    for name, keys in {"train-0": "ab", "train-1": "cd", "val-0": "e"}.items():
        memory.pipe(f"/bucket/voc/{name}.tar", write_tar(tmp_path / "s.tar", make_samples(keys)).read_bytes())
    memory.pipe("/bucket/voc/dataset.json", json.dumps(DATASET).encode())
    yield memory
    memory.rm("/bucket", recursive=True)


def test_remote_shards_are_read_like_local_ones() -> None:
    scenes = open_scenes("memory://bucket/voc/train-*.tar")
    assert [scenes[index].key for index in range(4)] == list("abcd")
    assert scenes.info.class_names == ("sky", "cat")
    assert len(open_scenes("memory://bucket/voc/val-0.tar")) == 1


def test_remote_shards_are_copied_once_and_again_after_a_change(
    tmp_path: Path, remote: fsspec.AbstractFileSystem, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "c2fmae.data.remote"):
        open_scenes("memory://bucket/voc/val-0.tar")
        assert len(caplog.messages) == 2
        open_scenes("memory://bucket/voc/val-0.tar")
        assert len(caplog.messages) == 2
        remote.pipe("/bucket/voc/val-0.tar", write_tar(tmp_path / "t.tar", make_samples("xyz")).read_bytes())
        assert list(open_scenes("memory://bucket/voc/val-0.tar").keys) == list("xyz")


def test_an_interrupted_copy_leaves_no_file(
    tmp_path: Path, remote: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    def copy_half(path: str, target: str) -> None:
        Path(target).write_bytes(remote.cat(path)[:700])
        raise OSError("connection lost")

    with monkeypatch.context() as context:
        context.setattr(type(remote), "get_file", lambda _, path, target: copy_half(path, target))
        url = "memory://bucket/voc/val-0.tar"
        assert_user_error(
            lambda: open_scenes(url), f"{url}: cannot be copied: connection lost. Check the URL and your permissions"
        )
    assert not list((tmp_path / "cache").rglob("*.tar*"))
    assert len(open_scenes(url)) == 1


def test_a_deleted_remote_file_is_deleted_from_the_cache(remote: fsspec.AbstractFileSystem) -> None:
    assert open_scenes("memory://bucket/voc/val-0.tar").info.class_names == ("sky", "cat")
    remote.rm("/bucket/voc/dataset.json")
    assert open_scenes("memory://bucket/voc/val-0.tar").info.class_names == ()


def test_missing_shards_and_unknown_protocols_are_refused() -> None:
    advice = "Give the URL of a .tar, of a directory of them, or a pattern"
    assert_user_error(lambda: open_scenes("memory://bucket/none"), f"memory://bucket/none: has no shards. {advice}")
    with pytest.raises(ValueError, match=r"^nope://x/a\.tar: (?s:.*)"):
        open_scenes("nope://x/a.tar")
    with pytest.raises(ValueError, match=r"shards of several sets: train \(2\), val \(1\)"):
        open_scenes("memory://bucket/voc")


@pytest.mark.parametrize(
    ("protocol", "fix"),
    [
        ("https", "Run: pip install aiohttp requests"),
        ("s3", "Run: pip install s3fs"),
        ("webhdfs", "Install the package of fsspec for webhdfs://"),
    ],
)
def test_the_packages_of_a_protocol_are_named(protocol: str, fix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(url: str) -> None:
        raise ImportError("needs a package.")

    monkeypatch.setattr(fsspec.core, "url_to_fs", refuse)
    url = f"{protocol}://bucket/voc/val-0.tar"
    assert_user_error(lambda: open_scenes(url), f"{url}: needs a package. {fix}")
