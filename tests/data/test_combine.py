import json
import pickle
from pathlib import Path

import pytest

from c2fmae.data.combine import LimitedScenes, read_stored_labels, select_evenly
from c2fmae.data.generated import GeneratedScenes
from c2fmae.data.sources import inspect_scenes, open_scenes
from c2fmae.data.stored import StoredScenes
from tests.data.dataset_files import DATASET, assert_user_error, make_samples, write_tar


def store(folder: Path, keys: str, info: dict[str, object] = DATASET) -> Path:
    shard = write_tar(folder / "s.tar", make_samples(keys))
    (folder / "dataset.json").write_text(json.dumps(info))
    return shard


def test_sources_with_one_label_space_are_concatenated(tmp_path: Path) -> None:
    sources = [store(tmp_path / "one", "ab"), store(tmp_path / "two", "cd", {**DATASET, "name": "other"})]
    scenes = pickle.loads(pickle.dumps(open_scenes(sources)))
    assert list(scenes.keys) == ["a", "b", "c", "d"]
    assert [scenes[index].key for index in range(4)] == ["a", "b", "c", "d"]
    assert scenes.info.class_names == ("sky", "cat")
    assert scenes.read_image_bytes(3) == make_samples("cd")["d.jpg"]
    with pytest.raises(IndexError, match="^scene 4 of 4$"):
        scenes[4]


def test_sources_with_different_label_spaces_are_refused(tmp_path: Path) -> None:
    other = {**DATASET, "name": "other", "classes": [{"name": "sky"}]}
    sources = [store(tmp_path / "one", "ab"), store(tmp_path / "two", "cd", other)]
    message = "'' and 'other' cannot be combined: their classes differ (2 and 1). Convert them to one label space first"
    assert_user_error(lambda: open_scenes(sources), message)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"labels": [{"name": "a"}]}, "their labels differ (2 and 1)"),
        ({"channels": 1}, "their channels differ (3 and 1)"),
        ({"granularities": ["semantic", "rgb"]}, "their granularities differ (3 and 2)"),
        ({"mean": [0.5, 0.5, 0.5]}, "their mean differ (None and 3)"),
    ],
)
def test_sources_that_differ_in_other_ways_are_refused(tmp_path: Path, other: dict[str, object], message: str) -> None:
    sources = [store(tmp_path / "one", "ab"), store(tmp_path / "two", "cd", {**DATASET, "name": "other", **other})]
    assert_user_error(
        lambda: open_scenes(sources),
        f"'' and 'other' cannot be combined: {message}. Convert them to one label space first",
    )


def test_a_key_in_two_sources_is_refused(tmp_path: Path) -> None:
    sources = [store(tmp_path / "one", "ab"), store(tmp_path / "two", "bc")]
    assert_user_error(
        lambda: open_scenes(sources), "sample 'b' is in two of the sources to combine. Remove it from one of them"
    )


def test_problems_of_all_sources_are_listed(tmp_path: Path) -> None:
    sources = [store(tmp_path / "one", "ab"), write_tar(tmp_path / "two" / "s.tar", {"c.jpg": b"", "c.cls": b"x"})]
    _, problems = inspect_scenes(sources, granularities=("rgb",))
    assert [problem.key for problem in problems] == ["c"]


def test_keys_and_granularities_can_be_selected(tmp_path: Path) -> None:
    scenes = open_scenes(store(tmp_path, "abcd"), keys=["d", "b"])
    assert (scenes[1].key, len(scenes), scenes.read_image_bytes(1)) == ("d", 2, make_samples("abcd")["d.jpg"])
    images = open_scenes("generated", granularities=("rgb",), size=48)
    assert list(images[0].maps) == ["rgb"]
    assert images.info.granularities == ("rgb",)


def test_a_limit_selects_evenly_spaced_scenes_on_first_use(tmp_path: Path) -> None:
    scenes = open_scenes(store(tmp_path, "abcdef"))
    limited = pickle.loads(pickle.dumps(LimitedScenes(scenes, 3)))
    assert (list(limited.keys), [scene.key for scene in limited]) == (["b", "d", "f"], ["b", "d", "f"])
    assert limited.read_image_bytes(1) == scenes.read_image_bytes(3)
    assert len(LimitedScenes(scenes, 7)) == 6
    assert isinstance(scenes, StoredScenes)
    labels = read_stored_labels(select_evenly(select_evenly(scenes, 4), 2))
    assert labels is not None
    assert labels.tolist() == scenes.labels[[2, 5]].tolist()  # of the rows 0, 2, 3 and 5
    assert read_stored_labels(GeneratedScenes(length=3)) is None
