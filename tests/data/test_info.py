import json
from pathlib import Path

import pytest

from c2fmae.data.info import DatasetInfo
from tests.data.dataset_files import DATASET, assert_user_error


def test_info_is_read_as_it_was_written(tmp_path: Path) -> None:
    info = DatasetInfo.from_dict({**DATASET, "label_stride": 4, "mean": [0.5, 0.5, 0.5], "made_by": "me"})
    (tmp_path / "dataset.json").write_text(info.to_json())
    assert DatasetInfo.read_from_dir(tmp_path) == info
    assert info.to_json() == DatasetInfo.from_dict(json.loads(info.to_json())).to_json()
    assert json.loads(info.to_json())["labels"] == [{"name": "a"}, None]


def test_a_directory_without_the_file_has_no_info(tmp_path: Path) -> None:
    assert DatasetInfo.read_from_dir(tmp_path) is None


def test_classes_and_labels_have_names() -> None:
    info = DatasetInfo.from_dict(DATASET)
    assert (info.class_names, info.label_names) == (("sky", "cat"), ("a", ""))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "expected a JSON object, got a list. Fix or remove it"),
        ('{"classes": ["cat"]}', "classes.0: expected a mapping of settings (key: value), got 'cat'"),
        ('{"classes": [{"nme": "cat"}]}', "classes.0.name: is required"),
        ('{"lable_stride": 4}', "lable_stride: no such setting. Did you mean 'label_stride'?"),
        ('{"granularities": ["x"]}', "no granularity named 'x'. Known: depth, instance, rgb, semantic"),
        ('{"mean": [0.5]}', "mean: expected 3 numbers, one per channel, got 1"),
        ('{"channels": 0}', "channels: input should be greater than or equal to 1, got 0"),
        ('{"value_range": [9, 1]}', "value_range.0: expected the lower value first, got [9.0, 1.0]. Swap them"),
        (
            '{"value_range": [[0, 1], [0, 2]]}',
            "value_range: expected one pair [low, high] or 3, one per channel, got 2",
        ),
        ('{"format": 2}', "format: input should be less than or equal to 1, got 2"),
    ],
)
def test_an_invalid_dataset_json_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "dataset.json").write_text(text)
    assert_user_error(lambda: DatasetInfo.read_from_dir(tmp_path), f"{tmp_path}/dataset.json: {message}")


def test_text_that_is_not_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text("{")
    reason = "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"
    assert_user_error(
        lambda: DatasetInfo.read_from_dir(tmp_path),
        f"{tmp_path}/dataset.json: is not JSON ({reason}). Fix or remove it",
    )


def test_more_than_255_classes_are_refused() -> None:
    classes = [{"name": f"class {i}"} for i in range(256)]
    message = (
        'dataset.json: classes: expected at most 255, got 256: ids are bytes, and 255 is "not labelled". Merge classes'
    )
    assert_user_error(lambda: DatasetInfo.from_dict({"classes": classes}, source="dataset.json"), message)


def test_a_value_range_is_one_pair_or_one_for_each_channel() -> None:
    assert DatasetInfo.from_dict({"value_range": [0, 4095]}).value_range == ((0, 4095),)
    assert DatasetInfo.from_dict({"channels": 2, "value_range": [[0, 1], [-5, 5]]}).value_range == ((0, 1), (-5, 5))
