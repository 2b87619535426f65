"""Suites that another package registers, and label maps that are not one to one."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from c2fmae.core.labels import LabelInfo
from c2fmae.core.scene import Scene
from c2fmae.data.digest import compute_scenes_digest
from c2fmae.data.info import DatasetInfo
from c2fmae.data.scenes import Scenes
from c2fmae.data.sources import open_scenes
from c2fmae.data.suites import (
    SUITES,
    Cell,
    LabelMap,
    ShiftedSet,
    Suite,
    SuiteCheckReport,
    check_suite,
    find_accepted_columns,
    identity_label_map,
    open_shifted_set,
)
from c2fmae.data.suites.label_map import SetLabels
from c2fmae.data.suites.labelled import LabelledImages
from tests.data.dataset_files import write_tree
from tests.data.suites.official_layouts import class_files, make_jpeg

CAT, FOX, WOLF, OWL = (LabelInfo(name=name) for name in ("cat", "fox", "wolf", "owl"))
MODEL_LABELS = (OWL, WOLF, None, CAT, FOX)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the registry as it was."""
    monkeypatch.setattr(SUITES, "_entries", dict(SUITES._entries))
    monkeypatch.setattr(SUITES, "_summaries", dict(SUITES._summaries))


def map_families(labels: SetLabels) -> LabelMap:
    """Many classes of a model to one of the set: "dog" accepts foxes and wolves."""
    families = {"dog": (FOX, WOLF), "cat": (CAT,), "fish": (LabelInfo(name="tench"),)}
    return tuple(families[label.name] if label else () for label in labels)


@dataclass(frozen=True)
class Relabelled:
    """Scenes with other labels."""

    scenes: Scenes
    labels: Sequence[int | None]

    @property
    def info(self) -> DatasetInfo:
        return self.scenes.info

    @property
    def keys(self) -> Sequence[str]:
        return self.scenes.keys

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> Scene:
        return replace(self.scenes[index], label=self.labels[index])

    def read_image_bytes(self, index: int) -> bytes | None:
        return self.scenes.read_image_bytes(index)


class ListedLabels:
    """Several labels per image, from lines of labels.txt: "KEY CLASS …"; an image without any does not count."""

    def open(self, suite: Suite, source: str | Path) -> ShiftedSet:
        """Number the distinct combinations of classes."""
        lines = dict(line.split(" ", 1) for line in (Path(source) / "labels.txt").read_text().splitlines())
        combinations = [tuple(sorted(classes.split())) for classes in lines.values() if classes]
        labels = {classes: label for label, classes in enumerate(dict.fromkeys(combinations))}
        stored = open_scenes(source)
        scenes = Relabelled(stored, [labels.get(tuple(sorted(lines[key].split()))) for key in stored.keys])
        identity = compute_scenes_digest(scenes, suite.name)
        return ShiftedSet(
            name=suite.name,
            suite=suite.name,
            cells=(Cell(None, None, scenes, suite.num_images, identity),),
            labels=tuple(LabelInfo(name=" or ".join(classes)) for classes in labels),
            protocol_wnids=None,
            is_cropped=False,
            creation_sentence=None,
            warnings=(),
            identity=identity,
            label_map=tuple(tuple(LabelInfo(name=name) for name in classes) for classes in labels),
        )

    def check(self, suite: Suite, source: str | Path) -> SuiteCheckReport:
        """Count images."""
        return SuiteCheckReport((), f"{suite.name}: {len(open_scenes(source))} images")


def count_correct(opened: ShiftedSet, predictions: dict[str, LabelInfo]) -> tuple[int, int]:
    """Return how many images are classified correctly, and how many count, as `find_accepted_columns` explains."""
    scenes = opened.cells[0].scenes
    given = [scenes[index].label for index in range(len(scenes))]
    labels = torch.tensor([-1 if label is None else label for label in given])
    predicted = torch.tensor([MODEL_LABELS.index(predictions[key]) for key in scenes.keys])
    accepted = find_accepted_columns(opened.accepted_classes, MODEL_LABELS)
    counts = (labels >= 0) & accepted.any(dim=1)[labels]
    return int((accepted[labels, predicted] & counts).sum()), int(counts.sum())


@pytest.mark.usefixtures("registered")
def test_a_many_to_one_suite_in_class_directories_needs_only_a_label_map(tmp_path: Path) -> None:
    suite = Suite(name="families", title="Families", layout=LabelledImages(), num_images=9, label_map=map_families)
    SUITES.register("families", "Families: a few images of animals.")(suite)
    root = write_tree(tmp_path, class_files("", ("cat", "dog", "fish")))
    opened = open_shifted_set("families", root)
    assert (opened.name, opened.suite) == ("families", "families")
    assert opened.accepted_classes == ((CAT,), (FOX, WOLF), (LabelInfo(name="tench"),))
    assert opened.warnings == ("6 of 9 images: the set is incomplete",)
    predictions = {"cat/0": CAT, "cat/1": WOLF, "dog/0": FOX, "dog/1": WOLF, "fish/0": OWL, "fish/1": OWL}
    assert count_correct(opened, predictions) == (3, 4)  # the model has no class of fish
    assert check_suite("families", root).findings == ("6 of 9 images: the set is incomplete",)


@pytest.mark.usefixtures("registered")
def test_a_multi_label_suite_accepts_any_label_of_an_image(tmp_path: Path) -> None:
    SUITES.register("several", "Several labels for each image.")(
        Suite(name="several", title="Several", layout=ListedLabels(), aliases=("many",))
    )
    text = "a cat fox\nb fox\nc fox cat\nd \ne tench owl\n"
    root = write_tree(tmp_path, {f"{key}.jpg": make_jpeg(key) for key in "abcde"} | {"labels.txt": text.encode()})
    opened = open_shifted_set("many", root, "mine")
    assert opened.name == "mine"
    assert [label and label.name for label in opened.labels] == ["cat or fox", "fox", "owl or tench"]
    assert count_correct(opened, {"a": CAT, "b": CAT, "c": FOX, "d": CAT, "e": OWL}) == (3, 4)
    assert check_suite("several", root).summary == "several: 5 images"


def test_accepted_columns_follow_wordnet_ids_and_skip_labels_without_a_class() -> None:
    tench, other = LabelInfo(name="tench", wnid="n01440764"), LabelInfo(name="fish", wnid="n01440764")
    accepted = find_accepted_columns(
        identity_label_map((None, tench, CAT)), (CAT, other, LabelInfo(name="tench"), None)
    )
    assert accepted.int().tolist() == [[0, 0, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0]]
    assert find_accepted_columns((), MODEL_LABELS).shape == (0, 5)
