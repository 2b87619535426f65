import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.labelling.thresholds import ThresholdRules, accept_candidates


class FakeSegmenter:
    """Records which candidates it is called with, and counts those that are large."""

    def __init__(self, is_large: list[bool]) -> None:
        self.is_large = torch.tensor(is_large, dtype=torch.bool)
        self.calls: list[list[int]] = []

    def __call__(self, new: Tensor) -> Tensor:
        self.calls.append(new.tolist())
        return self.is_large[new]


HAND_CASES = {
    "a clear object": ([0.9, 0.3], [True, True], 0.5, [0.5, None], [[0]]),
    "weak ones only": ([0.35, 0.25], [True, True], 0.3, [0.3, None], [[0]]),
    "weak and too small": ([0.9, 0.45, 0.25], [False, True, True], 0.4, [0.5, 0.4, None], [[0], [1]]),
    "nothing": ([], [], 0.2, [], []),
    "all above the highest": ([0.9, 0.8, 0.7], [True, True, True], 0.5, [0.5] * 3, [[0, 1, 2]]),
    "exactly at a threshold": ([0.4, 0.39], [True, True], 0.4, [0.4, None], [[0]]),
    "never enough": ([0.6, 0.35, 0.1], [False, False, True], 0.2, [0.5, 0.3, None], [[0], [1]]),
}


@pytest.mark.parametrize("case", HAND_CASES)
def test_the_threshold_is_lowered_until_an_object_is_large_enough(case: str) -> None:
    scores, is_large, threshold, accepted_at, calls = HAND_CASES[case]
    segment = FakeSegmenter(is_large)

    accepted = accept_candidates(torch.tensor(scores), segment, ThresholdRules())

    assert accepted.threshold == threshold
    assert list(accepted.accepted_at) == accepted_at
    assert segment.calls == calls


def test_more_objects_may_be_required() -> None:
    segment = FakeSegmenter([True, True, True])

    accepted = accept_candidates(torch.tensor([0.9, 0.45, 0.25]), segment, ThresholdRules(enough=2))

    assert accepted.threshold == 0.4
    assert segment.calls == [[0], [1]]


@given(st.lists(st.tuples(st.floats(0, 1, width=32), st.booleans()), max_size=8), st.integers(1, 3))
@settings(max_examples=30)
def test_candidates_that_a_threshold_accepts_are_accepted_by_lower_ones(
    candidates: list[tuple[float, bool]], enough: int
) -> None:
    scores = torch.tensor([score for score, _ in candidates])
    previous: set[int] = set()
    for count in range(1, 5):
        thresholds = (0.5, 0.4, 0.3, 0.2)[:count]
        segment = FakeSegmenter([large for _, large in candidates])
        accepted = accept_candidates(scores, segment, ThresholdRules(thresholds=thresholds, enough=enough))
        indices = {index for index, threshold in enumerate(accepted.accepted_at) if threshold is not None}
        flat = [index for call in segment.calls for index in call]
        assert len(flat) == len(set(flat))
        assert set(flat) == indices == {row for row in range(len(scores)) if scores[row] >= accepted.threshold}
        assert all(segment.calls)
        assert previous <= indices
        previous = indices


def test_one_threshold_is_a_plain_threshold() -> None:
    segment = FakeSegmenter([False] * 3)

    accepted = accept_candidates(torch.tensor([0.1, 0.3, 0.5]), segment, ThresholdRules(thresholds=(0.3,)))

    assert accepted.accepted_at == (None, 0.3, 0.3)


@pytest.mark.parametrize("thresholds", [(0.2, 0.4), (0.4, 0.4)])
def test_thresholds_must_decrease(thresholds: tuple[float, ...]) -> None:
    with pytest.raises(UserError, match=r"thresholds: expected decreasing thresholds.*from high to low"):
        ThresholdRules.from_dict({"thresholds": thresholds})
