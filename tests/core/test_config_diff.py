import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from c2fmae.core.config_diff import config_differences

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
SETTINGS = st.recursive(
    SCALARS | st.text("abc") | st.lists(st.integers()),
    lambda inner: st.dictionaries(st.text("abc", min_size=1, max_size=2), inner, max_size=3),
    max_leaves=6,
)
TREES = st.dictionaries(st.text("abc", min_size=1, max_size=2), SETTINGS, max_size=4)


def test_differences_are_listed_by_key_in_the_order_of_appearance() -> None:
    old = {"method": "mae", "training": {"lr": 0.001, "steps": 10, "betas": (0.9, 0.95)}, "ema": None, "gone": {"a": 1}}
    new = {"seed": 1, "training": {"steps": 10, "lr": 0.002, "betas": [0.9, 0.95], "bf16": True}, "method": "c2fmae"}
    assert config_differences(old, new) == [
        "method: mae → c2fmae",
        "training.lr: 0.001 → 0.002",
        "ema: null → (not set)",
        "gone.a: 1 → (not set)",
        "seed: (not set) → 1",
        "training.bf16: (not set) → true",
    ]
    assert config_differences({"a": [1, {"b": 2}]}, {"a": [1, {"b": 3}]}) == ['a: [1, {"b": 2}] → [1, {"b": 3}]']


@given(TREES, TREES)
def test_equal_configs_have_no_differences_and_others_are_symmetric(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert config_differences(one, json.loads(json.dumps(one))) == []
    forward, backward = config_differences(one, other), config_differences(other, one)
    swapped = [f"{key}: {new} → {old}" for key, old, new in map(split_line, forward)]
    assert sorted(swapped) == sorted(backward)


def split_line(line: str) -> tuple[str, str, str]:
    key, _, values = line.partition(": ")
    old, _, new = values.partition(" → ")
    return key, old, new
