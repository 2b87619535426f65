import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from c2fmae.core.errors import UserError
from c2fmae.data.key_list import KeyList, read_keys, write_keys

names = st.lists(st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\n")), max_size=8)


@given(names)
def test_a_key_list_is_a_list_of_its_names(listed: list[str]) -> None:
    keys = KeyList.from_names(listed)
    assert len(keys) == len(listed)
    assert list(keys) == [keys[index] for index in range(len(keys))] == listed
    assert list(KeyList(keys.encoded)) == list(pickle.loads(pickle.dumps(keys))) == listed


@given(names.filter(bool), st.data())
def test_names_are_selected_in_any_order(listed: list[str], data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.integers(0, len(listed) - 1)))
    assert list(KeyList.from_names(listed).select(np.array(rows, np.int64))) == [listed[row] for row in rows]
    assert list(KeyList.from_names(listed)[1:]) == listed[1:]


def test_keys_are_written_and_read_one_per_line(tmp_path: Path) -> None:
    path = tmp_path / "lists" / "good.txt"
    write_keys(path, ["a/1", "b\u2028c", "é"])
    assert read_keys(path) == ["a/1", "b\u2028c", "é"]
    path.write_bytes(b"\xef\xbb\xbfa\n\nb")
    assert read_keys(path) == ["a", "b"]


def test_a_key_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        read_keys(tmp_path / "none.txt")
    reason = "cannot be read: No such file or directory. Check the path, or restore the file"
    assert str(caught.value) == f"{tmp_path / 'none.txt'}: {reason}"
    path = tmp_path / "keys.txt"
    path.write_bytes(b"\xff")
    with pytest.raises(UserError, match=f"^{path}: is not UTF-8 text"):
        read_keys(path)
