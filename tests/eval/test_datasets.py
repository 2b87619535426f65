from pathlib import Path

import pytest
from PIL import Image

from c2fmae.config.data import DatasetConfig
from c2fmae.core.errors import UserError
from c2fmae.core.splits import find_train_test
from c2fmae.eval.data_config import TrainTestConfig
from c2fmae.eval.datasets import open_set
from tests.eval.tiny_backbones import tiny_backbone


def write_images(root: Path, *names: str) -> Path:
    for name in names:
        for label in ("a", "b"):
            class_dir = root / name / "rgb" / label
            class_dir.mkdir(parents=True)
            Image.new("RGB", (16, 16), (len(name), 0, 0)).save(class_dir / f"{name}-{label}.jpg")
    return root


def test_training_and_test_sets_are_found_by_name(tmp_path: Path) -> None:
    root = write_images(tmp_path, "train", "val")
    assert find_train_test(str(root)) == {"train": str(root / "train"), "test": str(root / "val")}
    assert find_train_test("generated") == {"train": "generated", "test": "generated"}


def test_shards_are_found_by_name_and_val_precedes_test(tmp_path: Path) -> None:
    for name in ("train-000000.tar", "train-000001.tar", "test-000000.tar", "val.tar"):
        (tmp_path / name).touch()
    assert find_train_test(str(tmp_path)) == {
        "train": str(tmp_path / "train[-_0-9]*.tar"),
        "test": str(tmp_path / "val.tar"),
    }


def test_a_folder_without_a_test_set_is_rejected(tmp_path: Path) -> None:
    root = write_images(tmp_path, "train")
    with pytest.raises(UserError) as caught:
        find_train_test(str(root))
    assert str(caught.value) == (
        f"{root}: no test set found (expected folders or shards named val, valid, validation or test). Give --data "
        "TRAIN --test TEST"
    )
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError) as caught:
        find_train_test(str(tmp_path / "empty"))
    assert str(caught.value) == (
        f"{tmp_path / 'empty'}: no train/test split found (expected folders or shards named train, and val, valid, "
        "validation or test). Give --data TRAIN --test TEST"
    )
    with pytest.raises(UserError) as caught:
        find_train_test(str(tmp_path / "nowhere"))
    assert str(caught.value) == (
        f"{tmp_path / 'nowhere'}: is not a folder with a training and a test set. Choose them with --data and --test"
    )


def test_testing_on_the_training_set_is_rejected() -> None:
    with pytest.raises(UserError, match="test: expected other scenes than the training set's. Use another set"):
        TrainTestConfig.from_dict({"train": "somewhere", "test": "somewhere"})
    generated = {"train": "generated", "test": "generated"}
    TrainTestConfig.from_dict(generated)
    TrainTestConfig.from_dict(generated, ["train.options.seed=1", "test.options.seed=2"])
    with pytest.raises(UserError, match="expected other scenes than the training set's"):
        TrainTestConfig.from_dict(generated, ["train.options.seed=1", "test.options.seed=1"])


def test_options_of_version_0_1_are_migrated() -> None:
    old = {"train": "generated", "test": "generated", "options": {"seed": 1, "size": 32}, "test_options": {"seed": 2}}
    config = TrainTestConfig.from_dict(old)
    assert config.train == DatasetConfig(name="generated", options={"seed": 1, "size": 32})
    assert config.test == DatasetConfig(name="generated", options={"seed": 2, "size": 32})
    paths = {"train": "here", "test": "there", "options": {}, "test_options": {}}
    assert TrainTestConfig.from_dict(paths) == TrainTestConfig(train="here", test="there")


def test_data_options_are_resolved_to_settings(tmp_path: Path) -> None:
    root = str(write_images(tmp_path, "train", "val"))
    assert TrainTestConfig.resolve_data_options(root, None) == {"train": f"{root}/train", "test": f"{root}/val"}
    assert TrainTestConfig.resolve_data_options("there", "here") == {"train": "there", "test": "here"}
    assert TrainTestConfig.resolve_data_options(None, None) == {}
    assert TrainTestConfig.resolve_data_options(None, "here") == {"test": "here"}


def test_generated_sets_differ_and_have_the_backbones_image_size() -> None:
    source = DatasetConfig(name="generated", options={"length": 3})
    train, test = open_set("train", source, (32, 40), ("rgb",)), open_set("test", source, (32, 40), ("rgb",))
    assert train.scenes[0].maps["rgb"].shape == (3, 40, 40)
    assert train.identity != test.identity
    assert str(train) == "generated, size 40, length 3, seed 1001 (3)"


def test_missing_sets_are_named_in_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^test: is required. Use --data with a folder of train and val sets$"):
        open_set("test", None, (16, 16), ("rgb",))
    with pytest.raises(UserError, match=rf"^train: {tmp_path}/none: does not exist"):
        open_set("train", str(tmp_path / "none"), (16, 16), ("rgb",))


def test_image_sizes_must_be_multiples_of_the_patch_size() -> None:
    config = TrainTestConfig(image_size=(16, 20))
    with pytest.raises(UserError, match=r"^image_size: 20 is not a multiple of the patch size 8 \(of this backbone\)"):
        config.make_view(tiny_backbone())
    assert TrainTestConfig().make_view(tiny_backbone()).size == (16, 16)
