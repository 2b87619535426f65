import json
import logging
import os
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import fsspec
import pytest
from fsspec.registry import _registry

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


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


class UrllibFileSystem(fsspec.AbstractFileSystem):  # type: ignore[misc]
    """HTTP as in fsspec, whose own implementation needs aiohttp: `ukey` depends on the URL alone."""

    protocol = "http"
    cachable = False

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path

    def ukey(self, path: str) -> str:
        return path

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        try:
            with urlopen(Request(path, method="HEAD")) as response:
                headers = {key: response.headers[key] for key in ("ETag", "Last-Modified") if key in response.headers}
                return {"name": path, "type": "file", "size": int(response.headers["Content-Length"]), **headers}
        except HTTPError as error:
            raise FileNotFoundError(path) from error

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        with urlopen(path) as response:
            return bytes(response.read())

    def get_file(self, path: str, target: str, **kwargs: Any) -> None:
        Path(target).write_bytes(self.cat_file(path))


@pytest.fixture
def http_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of the directory `tmp_path/served`, which a local server serves."""
    monkeypatch.setitem(_registry, "http", UrllibFileSystem)
    (tmp_path / "served").mkdir()
    handler = partial(QuietHandler, directory=str(tmp_path / "served"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_copy_of_an_http_source_is_refreshed(tmp_path: Path, http_url: str, caplog: pytest.LogCaptureFixture) -> None:
    served = tmp_path / "served"
    shard, dataset = write_tar(served / "a.tar", make_samples("ab")), served / "dataset.json"
    dataset.write_text(json.dumps(DATASET))
    scenes = open_scenes(f"{http_url}/a.tar")
    assert (list(scenes.keys), scenes.info.class_names) == (["a", "b"], ("sky", "cat"))
    size = shard.stat().st_size
    write_tar(shard, make_samples("cd"))
    os.utime(shard, (1, 1))
    dataset.write_text(json.dumps(DATASET).replace("cat", "dog"))
    assert shard.stat().st_size == size
    scenes = open_scenes(f"{http_url}/a.tar")
    assert (list(scenes.keys), scenes.info.class_names) == (["c", "d"], ("sky", "dog"))
    with caplog.at_level(logging.INFO, "c2fmae.data.remote"):
        open_scenes(f"{http_url}/a.tar")
    assert caplog.messages == []
    dataset.unlink()
    assert open_scenes(f"{http_url}/a.tar").info.class_names == ()
