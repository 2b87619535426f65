import io
import logging
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from c2fmae.data.folders import open_folder_tree
from c2fmae.data.key_list import KeyList
from c2fmae.data.scenes import Scenes
from c2fmae.data.suites.tar_tree import TarTree, open_tar_tree
from c2fmae.data.tar_index import ShardIndex
from tests.data.dataset_files import assert_user_error, encode_image, write_tar, write_tree

JPEGS = [encode_image(Image.new("RGB", (8, 6), (shade, 90, 10)), "JPEG") for shade in (0, 80, 160, 240)]
DOTS = "0.000116_digital clock _ digital clock_0.865662"
FILES = {
    "imagenet-a/README.txt": b"read me",
    f"imagenet-a/n02/{DOTS}.jpg": JPEGS[0],
    "imagenet-a/n02/b.JPEG": JPEGS[1],
    "imagenet-a/n01/c.png": JPEGS[2],
    "imagenet-a/n01/._c.png": b"junk",
    "imagenet-a/.trash/n01/d.jpg": JPEGS[3],
    "imagenet-a/n01-x/e.jpg": JPEGS[3],
}


def list_images(scenes: Scenes) -> list[tuple[str, str, bytes | None, list[int]]]:
    images = []
    for row, key in enumerate(scenes.keys):
        scene = scenes[row]
        assert scene.label is not None
        images.append(
            (
                key,
                scenes.info.label_names[scene.label],
                scenes.read_image_bytes(row),
                scene.maps["rgb"][:, 0, 0].tolist(),
            )
        )
    return images


def test_a_tar_is_read_like_the_directory_it_was_made_of(tmp_path: Path) -> None:
    tree = open_tar_tree(write_tar(tmp_path / "a.tar", FILES)).open_images("imagenet-a")
    folder, problems = open_folder_tree(write_tree(tmp_path / "a", FILES) / "imagenet-a", ("rgb",), {"rgb": "."})
    assert folder is not None
    assert not problems
    assert list_images(tree) == list_images(folder)
    assert tree.info == folder.info
    assert [key for key, *_ in list_images(tree)] == ["n01-x/e", "n01/c", f"n02/{DOTS}", "n02/b"]


def test_messages_name_an_image_by_its_tar_and_path(tmp_path: Path) -> None:
    scenes = open_tar_tree(write_tar(tmp_path / "a.tar", FILES)).open_images("imagenet-a")
    assert scenes.describe_location(3, "rgb") == f"{tmp_path}/a.tar: imagenet-a/n02/b.JPEG"
    write_tar(tmp_path / "b.tar", {"x/y.jpg": b"no image"})
    scenes = open_tar_tree(tmp_path / "b.tar").open_images()
    with pytest.raises(ValueError, match=f"^{tmp_path}/b.tar: x/y.jpg: cannot be decoded"):
        scenes[0]


@given(st.sets(st.text("ab.-0é~/", min_size=1, max_size=6), max_size=12))
def test_directories_and_files_are_those_of_the_paths(names: set[str]) -> None:
    paths = {name.strip("/.") for name in names if "//" not in name and "/." not in name} - {""}
    tree = _tree_of(sorted(paths))
    for under in {"", *(parent for path in paths for parent in _parents(path))}:
        prefix = f"{under}/" if under else ""
        below = sorted(path.removeprefix(prefix) for path in paths if path.startswith(prefix))
        assert tree.list_files(under) == below
        assert list(tree.list_dirs(under)) == sorted({path.partition("/")[0] for path in below if "/" in path})


def _parents(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:depth]) for depth in range(1, len(parts))]


def _tree_of(paths: list[str]) -> TarTree:
    places = np.zeros((len(paths), 1), np.int64)
    return TarTree(
        Path("x.tar"), ShardIndex((0, 0), KeyList.from_names(paths), ("file",), places, places, places[:, 0])
    )


def test_the_index_is_built_once_and_saved_beside_the_tar(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tar = write_tar(tmp_path / "a.tar", FILES)
    with caplog.at_level(logging.INFO):
        first = open_tar_tree(tar)
        second = open_tar_tree(tar)
    assert caplog.messages == [f"indexing {tar}"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", "a.tar.tree.index"]
    assert first.list_files() == second.list_files() == sorted(FILES)
    assert list_images(first.open_images("imagenet-a")) == list_images(second.open_images("imagenet-a"))
    write_tar(tar, {"n01/other.jpg": JPEGS[0]})
    assert open_tar_tree(tar).list_files() == ["n01/other.jpg"]


def test_scenes_of_a_tar_can_be_pickled(tmp_path: Path) -> None:
    scenes = open_tar_tree(write_tar(tmp_path / "a.tar", FILES)).open_images("imagenet-a")
    assert list_images(pickle.loads(pickle.dumps(scenes))) == list_images(scenes)


def test_an_incomplete_tar_is_refused_and_not_indexed(tmp_path: Path) -> None:
    complete = write_tar(tmp_path / "complete.tar", FILES).read_bytes()
    cut = tmp_path / "cut.tar"
    cut.write_bytes(complete[: len(complete) // 4])
    with pytest.raises(ValueError, match=f"^{cut}: (truncated inside|not a complete tar).*Copy or pack it again"):
        open_tar_tree(cut)
    assert not cut.with_name("cut.tar.tree.index").exists()
    absent = tmp_path / "absent.tar"
    assert_user_error(
        lambda: open_tar_tree(absent),
        f"{absent}: cannot be read: No such file or directory. Check the path, or restore the file",
    )


def test_duplicate_names_are_refused(tmp_path: Path) -> None:
    tar = tmp_path / "a.tar"
    with tarfile.open(tar, "w") as stream:
        for data in JPEGS[:2]:
            member = tarfile.TarInfo("n01/a.jpg")
            member.size = len(data)
            stream.addfile(member, io.BytesIO(data))
    assert_user_error(lambda: open_tar_tree(tar), f"{tar}: has member 'n01/a.jpg' twice. Copy or pack it again")
    write_tar(tar, {"n01/a.jpg": JPEGS[0], "n01/a.png": JPEGS[1]})
    assert_user_error(
        lambda: open_tar_tree(tar).open_images(),
        f"{tar}: sample 'n01/a' has another image, n01/a.jpg. Remove one",
    )


def test_a_directory_of_a_tar_without_images_is_refused(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", {"x/README": b"", "y/a.jpg": JPEGS[0]})
    assert_user_error(
        lambda: open_tar_tree(tar).open_images("x"), f"{tar}: x: no images (expected CLASS/NAME.jpg). Check the path"
    )
