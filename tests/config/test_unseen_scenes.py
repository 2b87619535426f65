"""The scenes that `generated` stands for in evaluations and figures of runs."""

import logging
from pathlib import Path

import pytest

from c2fmae.config.data import DatasetConfig
from c2fmae.config.unseen_scenes import UnseenScenes, find_unseen_scenes, read_generated_sets
from c2fmae.core.errors import UserError
from c2fmae.eval.classification.config import ClassificationDataConfig, FinetuneConfig
from c2fmae.recipes.config import load_recipe

GENERATED = DatasetConfig(name="generated")
SETS = {"train": GENERATED, "test": GENERATED}


def write_run(path: Path, *options: str) -> str:
    """Write the config of a run on generated scenes with these options, without a checkpoint."""
    path.mkdir()
    recipe = load_recipe("c2fmae-debug", [f"data.train.options.{option}" for option in options])
    (path / "config.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    return str(path)


def test_generated_stands_for_the_scenes_of_the_run_with_other_seeds(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "difficulty=plain", "domain=sketch", "seed=3")
    unseen = find_unseen_scenes([run], SETS)
    assert unseen == UnseenScenes({"difficulty": "plain", "domain": "sketch"}, seed=4000)
    filled = unseen.fill(DatasetConfig(name="generated", options={"difficulty": "hard"}), length=9)
    assert filled == DatasetConfig(
        name="generated", options={"length": 9, "difficulty": "hard", "domain": "sketch"}
    )  # given options stay
    assert unseen.fill(("images", GENERATED)) == ("images", unseen.fill(GENERATED))
    assert find_unseen_scenes([run], {"data": "images"}) is None


def test_runs_that_differ_are_an_error_that_names_the_option(tmp_path: Path) -> None:
    plain = write_run(tmp_path / "a", "difficulty=plain", "seed=1")
    other = write_run(tmp_path / "b", "difficulty=plain", "size=96", "length=50", "seed=2")
    medium = write_run(tmp_path / "c", "difficulty=medium")
    assert find_unseen_scenes([plain, "timm:test_vit", other], SETS) == UnseenScenes({"difficulty": "plain"}, seed=3000)
    with pytest.raises(UserError) as caught:
        find_unseen_scenes([plain, medium], SETS)
    assert str(caught.value) == (
        f"generated: {plain} and {medium} were trained on different scenes, of difficulty plain and medium. Choose one "
        "with --set train.options.difficulty=plain --set test.options.difficulty=plain"
    )
    chosen = DatasetConfig(name="generated", options={"difficulty": "plain"})
    assert find_unseen_scenes([plain, medium], {"data": chosen}) is not None
    default = write_run(tmp_path / "d")  # easy, which the recipe sets
    domain = write_run(tmp_path / "e", "domain=sketch")
    with pytest.raises(UserError, match=r"of domain \w+ and sketch\. Choose one with --set data\.options\.domain"):
        find_unseen_scenes([default, domain], {"data": GENERATED})


def test_a_source_that_is_no_run_has_the_default_and_a_note(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "c2fmae")
    assert find_unseen_scenes(["timm:test_vit"], SETS) is None
    assert caplog.messages == [
        "note: `generated` stands for scenes of difficulty medium, as timm:test_vit was not trained on any. "
        "Choose others with --set train.options.difficulty=plain --set test.options.difficulty=plain"
    ]
    (tmp_path / "images").mkdir()
    on_images = load_recipe("c2fmae-debug", ["data.train=images"])
    (tmp_path / "images" / "config.yaml").write_text(on_images.to_yaml(), encoding="utf-8")
    assert find_unseen_scenes([str(tmp_path / "images")], SETS, is_quiet=True) is None
    chosen = DatasetConfig(name="generated", options={"difficulty": "hard"})
    assert find_unseen_scenes(["timm:test_vit"], {"data": chosen}) is None
    assert len(caplog.messages) == 1


def test_sets_are_read_from_mixtures_fine_tuned_runs_and_old_configs(tmp_path: Path) -> None:
    mixture = load_recipe("c2fmae-debug", ["data.train=[images, {name: generated, options: {domain: sketch}}]"])
    data = ClassificationDataConfig(train=DatasetConfig(name="generated", options={"seed": 5}), test="images")
    by_default = ClassificationDataConfig(train="generated", test="images")
    for name, text in (
        ("mixture", mixture.to_yaml()),
        ("fine-tuned", FinetuneConfig(init="run", data=data).to_yaml()),
        ("fine-tuned by default", FinetuneConfig(init="timm:a", data=by_default).to_yaml()),
        ("old", "data: {train: generated, options: {difficulty: hard}}\ntraining: {}\n"),
        ("name", "format: 2\nkind: pretraining\ndata: {train: generated}\n"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(text, encoding="utf-8")
    names = ("mixture", "fine-tuned", "fine-tuned by default", "old", "name", "none")
    assert [read_generated_sets(str(tmp_path / name)) for name in names] == [
        *([{"domain": "sketch"}], [{"seed": 5}], [{"seed": 1001}], [{"difficulty": "hard"}], [{}], [])
    ]
