import pickle

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from c2fmae.data.key_list import KeyList

names = st.lists(st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\n")), max_size=8)


@given(names)
def test_a_key_list_is_a_list_of_its_names(listed: list[str]) -> None:
    keys = KeyList.from_names(listed)
    assert len(keys) == len(listed)
    assert list(keys) == [keys[index] for index in range(len(keys))] == listed
    assert list(KeyList(keys.encoded)) == list(pickle.loads(pickle.dumps(keys))) == listed


@given(names.filter(bool), st.data())
def test_names_can_be_taken_in_any_order(listed: list[str], data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.integers(0, len(listed) - 1)))
    assert list(KeyList.from_names(listed).select(np.array(rows, np.int64))) == [listed[row] for row in rows]
    assert list(KeyList.from_names(listed)[1:]) == listed[1:]
