"""Sets that share a directory."""

from pathlib import Path

from c2fmae.core.splits import find_splits


def test_folders_and_shards_of_sets_are_found_the_training_set_first(tmp_path: Path) -> None:
    for name in ("val", "train", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "test-000000.tar").touch()
    assert find_splits(tmp_path) == {
        "train": str(tmp_path / "train"),
        "val": str(tmp_path / "val"),
        "test": str(tmp_path / "test[-_0-9]*.tar"),
    }


def test_other_directories_hold_one_set(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "car").mkdir()  # classes
    assert find_splits(tmp_path) == {}
    (tmp_path / "val").mkdir()
    (tmp_path / "rgb").mkdir()  # a tree
    assert find_splits(tmp_path) == {}
    assert find_splits("generated") == find_splits(tmp_path / "none") == {}
