import json
from pathlib import Path

import pytest

from c2fmae.data.info import DatasetInfo
from tests.data.dataset_files import DATASET, assert_user_error


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    info = DatasetInfo.from_dict({**DATASET, "label_stride": 4, "mean": [0.5, 0.5, 0.5], "made_by": "me"})
    (tmp_path / "dataset.json").write_text(info.to_json())
    assert DatasetInfo.read_from_dir(tmp_path) == info
    assert info.to_json() == DatasetInfo.from_dict(json.loads(info.to_json())).to_json()
    assert json.loads(info.to_json())["labels"] == [{"name": "a"}, None]


def test_a_folder_without_one_has_none(tmp_path: Path) -> None:
    assert DatasetInfo.read_from_dir(tmp_path) is None


def test_classes_and_labels_have_names() -> None:
    info = DatasetInfo.from_dict(DATASET)
    assert (info.class_names, info.label_names) == (("sky", "cat"), ("a", ""))


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ("[]", "expected an object with `classes`, `ignore`, `label_stride`, …"),
        ('{"classes": ["cat"]}', "classes.0: expected settings of its own (key: value), got 'cat'"),
        ('{"classes": [{"nme": "cat"}]}', "classes.0.name: is required"),
        ('{"lable_stride": 4}', "lable_stride: no such setting. Did you mean 'label_stride'?"),
        ('{"granularities": ["x"]}', "no granularity named 'x'. Known: depth, instance, rgb, semantic"),
        ('{"mean": [0.5]}', "mean: expected 3 numbers, one a channel, got 1"),
        ('{"format": 2}', "format: input should be less than or equal to 1, got 2"),
    ],
)
def test_a_dataset_json_that_makes_no_sense_is_refused(tmp_path: Path, told: str, message: str) -> None:
    (tmp_path / "dataset.json").write_text(told)
    assert_user_error(lambda: DatasetInfo.read_from_dir(tmp_path), f"{tmp_path}/dataset.json: {message}")


def test_what_is_not_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text("{")
    why = "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"
    assert_user_error(
        lambda: DatasetInfo.read_from_dir(tmp_path), f"{tmp_path}/dataset.json: not JSON ({why}). Mend it, or remove it"
    )


def test_more_classes_than_a_byte_can_number_are_refused() -> None:
    classes = [{"name": f"class {i}"} for i in range(256)]
    message = "dataset.json: classes: at most 255 can be told apart, got 256"
    assert_user_error(lambda: DatasetInfo.from_dict({"classes": classes}, source="dataset.json"), message)
