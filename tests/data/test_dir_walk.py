from pathlib import Path

import pytest

from c2fmae.core.errors import UserError
from c2fmae.data import open_scenes
from c2fmae.data.dir_walk import walk_dirs
from c2fmae.data.suites.dir_tree import DirTree
from tests.report.parsed_page import write_images


@pytest.fixture
def looped_dir(tmp_path: Path) -> Path:
    """Return a directory of two images, in which links lead back up and across."""
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        write_images(tmp_path / name, "a.png")
    (tmp_path / "dog" / "up").symlink_to(tmp_path)
    (tmp_path / "dog" / "across").symlink_to(tmp_path / "cat")
    (tmp_path / "cat" / "across").symlink_to(tmp_path / "dog")
    return tmp_path


def test_a_directory_is_walked_once_whatever_links_lead_to_it(looped_dir: Path) -> None:
    repeats: list[tuple[str, str]] = []
    walked = [
        path for path, _, _ in walk_dirs(looped_dir, report_repeat=lambda path, first: repeats.append((path, first)))
    ]
    assert sorted({Path(path).resolve() for path in walked}) == [looped_dir, looped_dir / "cat", looped_dir / "dog"]
    assert len(walked) == len(repeats) == 3
    assert len(DirTree(looped_dir).list_files()) == 2


def test_a_folder_whose_links_form_a_loop_is_an_error(looped_dir: Path) -> None:
    with pytest.raises(UserError, match=r"is the same directory as .*\. Remove the link"):
        open_scenes(str(looped_dir), granularities=("rgb",))


def test_links_to_directories_elsewhere_are_followed(tmp_path: Path) -> None:
    (tmp_path / "stored").mkdir()
    write_images(tmp_path / "stored", "a.png", "b.png", "c.png")
    (tmp_path / "data" / "images").mkdir(parents=True)
    (tmp_path / "data" / "images" / "cat").symlink_to(tmp_path / "stored")
    assert len(open_scenes(str(tmp_path / "data"), granularities=("rgb",))) == 3
