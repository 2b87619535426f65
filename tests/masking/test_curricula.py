from collections.abc import Callable
from functools import partial
from itertools import pairwise, permutations

import pytest

from c2fmae.masking import CURRICULA
from c2fmae.masking.curricula import Phase, constant, cosine, piecewise, triangle

pytestmark = pytest.mark.numeric

TIMES = [step / 200 for step in range(201)]


def name_coefficients(alpha: float, beta: float) -> dict[str, float]:
    return {"semantic": alpha, "instance": beta, "random": 1 - alpha - beta}


@pytest.mark.parametrize("name", list(CURRICULA))
def test_coefficients_are_not_negative_and_add_up_to_at_most_one(name: str) -> None:
    for alpha, beta in map(CURRICULA.get(name), TIMES):
        assert alpha >= 0
        assert beta >= 0
        assert alpha + beta <= 1 + 1e-12


@pytest.mark.parametrize("name", list(CURRICULA))
@pytest.mark.parametrize("progress", [-0.01, 1.01, float("nan")])
def test_progress_outside_zero_to_one_is_rejected(name: str, progress: float) -> None:
    with pytest.raises(ValueError, match=r"^progress: expected a number in \[0, 1\], got"):
        CURRICULA.get(name)(progress)


@pytest.mark.parametrize("name", ["triangle", "cosine", "piecewise"])
def test_the_default_order_is_semantic_instance_random(name: str) -> None:
    curriculum = CURRICULA.get(name)
    assert [curriculum(t) for t in (0.0, 0.5, 1.0)] == [pytest.approx(pair) for pair in ((1, 0), (0, 1), (0, 0))]


def test_triangle_matches_the_formula() -> None:
    for t in TIMES:
        assert triangle(t) == pytest.approx((max(0, 1 - 2 * t), 1 - abs(2 * t - 1)))


@pytest.mark.parametrize("curriculum", [triangle, cosine])
@pytest.mark.parametrize("order", list(permutations(("semantic", "instance", "random"))))
def test_phases_follow_any_order_without_jumps(
    curriculum: Callable[..., tuple[float, float]], order: tuple[Phase, Phase, Phase]
) -> None:
    path = [name_coefficients(*curriculum(t, order=order)) for t in TIMES]
    for phase, time in zip(order, (0, 100, 200), strict=True):
        assert path[time][phase] == pytest.approx(1)
    for before, after in pairwise(path):
        assert all(abs(before[phase] - after[phase]) < 0.02 for phase in order)


def test_an_order_with_a_repeated_phase_is_rejected() -> None:
    with pytest.raises(ValueError, match="^order: expected semantic, instance and random in any order, got random, r"):
        triangle(0.5, order=("random", "random", "semantic"))


def test_piecewise_passes_through_its_knots_and_is_constant_outside() -> None:
    curriculum = partial(piecewise, knots=((0.2, 0.0, 0.0), (0.6, 0.8, 0.2), (0.8, 0.0, 1.0)))
    expected = [(0, 0), (0, 0), (0.4, 0.1), (0.8, 0.2), (0, 1), (0, 1)]
    assert [curriculum(t) for t in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)] == [pytest.approx(pair) for pair in expected]


@pytest.mark.parametrize(
    ("knots", "message"),
    [
        ((), r"knots: expected at least one, with increasing progress, got \[\]"),
        (
            ((0.5, 1.0, 0.0), (0.5, 0.0, 1.0)),
            r"knots: expected at least one, with increasing progress, got \[0.5, 0.5\]",
        ),
        (((0.5, 0.7, 0.7),), "knot at 0.5: expected α and β of at least 0, together at most 1, got 0.7 and 0.7"),
    ],
)
def test_invalid_knots_are_rejected(knots: tuple[tuple[float, float, float], ...], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        piecewise(0.1, knots=knots)


def test_constant_does_not_depend_on_progress() -> None:
    assert {constant(t, alpha=0.2, beta=0.5) for t in TIMES} == {(0.2, 0.5)}
    with pytest.raises(
        ValueError, match="^constant: expected α and β of at least 0, together at most 1, got 0.8 and 0.5$"
    ):
        constant(0.0, alpha=0.8, beta=0.5)
