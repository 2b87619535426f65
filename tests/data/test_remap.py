import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from c2fmae.data.remap import build_id_table, is_within_label_space, remap_ids
from tests.data.dataset_files import assert_user_error

maps = arrays(np.uint8, st.tuples(st.integers(1, 6), st.integers(1, 6)))


@given(maps, st.integers(0, 255))
def test_ids_within_the_label_space_are_unchanged_by_remapping(ids: np.ndarray, num_classes: int) -> None:
    is_inside = bool(((ids < num_classes) | (ids == 255)).all())
    assert is_within_label_space(ids, num_classes) == is_inside
    if is_inside and num_classes:
        assert np.array_equal(remap_ids(ids, build_id_table(num_classes), "a"), ids)


@pytest.mark.parametrize(
    ("options", "stored", "expected"),
    [
        ({}, [0, 2, 255], [0, 2, 255]),
        ({"ignore": 9}, [0, 9, 255], [0, 255, 255]),
        ({"offset": 1, "ignore": 0}, [0, 1, 3, 255], [255, 0, 2, 255]),
        ({"offset": 10}, [10, 12, 255], [0, 2, 255]),
        ({"bits": 16, "ignore": 65535}, [0, 2, 65535], [0, 2, 255]),
        ({"bits": 16, "ignore": 0, "offset": 1}, [0, 3, 65535], [255, 2, 255]),
    ],
)
def test_ids_are_converted_by_the_table(options: dict[str, int], stored: list[int], expected: list[int]) -> None:
    ids = np.array([stored], np.uint16 if "bits" in options else np.uint8)
    assert remap_ids(ids, build_id_table(3, **options), "a").tolist() == [expected]


def test_all_ids_are_accepted_without_a_label_space() -> None:
    ids = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert np.array_equal(remap_ids(ids, build_id_table(0), "a"), ids)


@pytest.mark.parametrize(("bits", "outside"), [(8, 21), (16, 21), (16, 60_000), (64, 1 << 20)])
def test_an_id_outside_the_label_space_is_refused_with_file_and_count(bits: int, outside: int) -> None:
    ids = np.array([[0, outside, outside], [20, 255, 3]], f"u{bits // 8}")
    advice = "Add the class to dataset.json, or map the id to its `ignore`"
    message = f"a.png: id {outside} on 2 pixels is outside the 21 classes of the label space. {advice}"
    assert_user_error(lambda: remap_ids(ids, build_id_table(21), "a.png"), message)


def test_an_id_after_the_end_of_a_short_table_is_refused() -> None:
    table = np.array([255, 0, -1, 1])
    assert remap_ids(np.array([[0, 1, 3]], np.uint8), table, "a").tolist() == [[255, 0, 1]]
    with pytest.raises(ValueError, match=r"^a: id 4 on 1 pixels is outside the 2 classes"):
        remap_ids(np.array([[0, 1, 4]], np.uint8), table, "a")


def test_the_most_frequent_of_several_outside_ids_is_named() -> None:
    ids = np.array([[5, 6, 6], [7, 0, 1]], np.uint8)
    advice = "Add the class to dataset.json, or map the id to its `ignore`"
    message = f"a.png: id 6 on 2 pixels (and 2 more ids) is outside the 3 classes of the label space. {advice}"
    assert_user_error(lambda: remap_ids(ids, build_id_table(3), "a.png"), message)
