"""Pre-training from a data set of torch: like from the same images in a folder, and resumed to the same bits."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset

from c2fmae.core.errors import UserError
from c2fmae.core.experiment import RunOutcome
from c2fmae.core.run_dir import find_checkpoint
from c2fmae.data import DatasetScenes, open_scenes
from c2fmae.data.scenes import Scenes
from c2fmae.pretrain import pretrain
from c2fmae.recipes.config import RecipeConfig, load_recipe
from tests.test_pretrain import write_folder

SETTINGS = (
    "training.steps=4", "training.warmup_steps=1", "training.precision=fp32", "training.batch_size=4",
    "method.encoder.depth=1", "method.decoder.options.depth=1", "watching.figures=0", "saving.steps=2",
    "data.held_out=null",
)  # fmt: skip


class Loaded(Dataset[Any]):
    """A data set of a user: image and maps of each sample, in memory."""

    def __init__(self, scenes: Scenes) -> None:
        self.items = [scenes[index].maps for index in range(len(scenes))]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        maps = self.items[index]
        return {"image": maps["rgb"], "semantic": maps["semantic"].long(), "instance": maps["instance"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "scenes"
    write_folder(path, count=12)
    return path


def adapt(folder: Path) -> DatasetScenes:
    stored = open_scenes(folder)
    return DatasetScenes(Loaded(stored), info=stored.info, keys=list(stored.keys))


def recipe(*overrides: str) -> RecipeConfig:
    return load_recipe("c2fmae-debug", [*SETTINGS, *overrides])


def weights_of(out: Path) -> Mapping[str, torch.Tensor]:
    return find_checkpoint(out).tensors


def assert_same_run(first: Path, second: Path) -> None:
    assert (first / "metrics.jsonl").read_bytes() == (second / "metrics.jsonl").read_bytes()
    expected, found = weights_of(first), weights_of(second)
    assert [name for name in expected.keys() | found if not expected[name].equal(found[name])] == []


def test_a_data_set_trains_like_the_same_folder_for_any_number_of_workers(folder: Path, tmp_path: Path) -> None:
    pretrain(recipe(f"data.train={folder}"), tmp_path / "folder")
    for workers in (0, 2):
        out = tmp_path / str(workers)
        outcome = pretrain(recipe(f"data.workers={workers}"), out, scenes=adapt(folder))
        assert outcome == RunOutcome("finished", 4)
        assert_same_run(tmp_path / "folder", out)
        assert "train: null" in (out / "config.yaml").read_text()


def test_an_interrupted_run_is_resumed_to_the_same_bits(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretrain(recipe(), tmp_path / "whole", scenes=adapt(folder))
    scenes = adapt(folder)
    read: Callable[[DatasetScenes, int], Any] = DatasetScenes.__getitem__
    count = 0

    def read_twelve(self: DatasetScenes, index: int) -> Any:
        nonlocal count
        count += 1
        if count > 12:
            raise KeyboardInterrupt
        return read(self, index)

    with monkeypatch.context() as patch:
        patch.setattr(DatasetScenes, "__getitem__", read_twelve)
        with pytest.raises(KeyboardInterrupt):
            pretrain(recipe(), tmp_path / "parts", scenes=scenes)
    assert find_checkpoint(tmp_path / "parts").step == 2
    assert pretrain(recipe(), tmp_path / "parts", scenes=scenes, resume=True) == RunOutcome("finished", 4)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_held_out_scenes_are_given_too_and_images_alone_are_enough_for_mae(folder: Path, tmp_path: Path) -> None:
    scenes = adapt(folder)
    out = tmp_path / "mae"
    tiny = ("training.steps=1", "training.warmup_steps=0", "training.batch_size=4", "watching.figures=0")
    pretrain(load_recipe("mae-tiny", tiny), out, scenes=scenes, held_out=scenes)
    assert '"held_out/loss"' in (out / "metrics.jsonl").read_text()


def test_a_map_that_the_data_set_lacks_is_an_error(folder: Path, tmp_path: Path) -> None:
    images = DatasetScenes([scene.maps["rgb"] for scene in map(open_scenes(folder).__getitem__, range(4))])
    with pytest.raises(UserError) as caught:
        pretrain(recipe(), tmp_path / "run", scenes=images)
    assert str(caught.value) == (
        "semantic: the scenes have no such map (got rgb). Add it to the data, or use another method, such as mae for"
        " images alone"
    )
