"""Curricula: the coefficients of the three masks as a function of training progress.

A curriculum maps progress in [0, 1] to (α, β), the coefficients of the semantic and the instance mask; that of the
random mask is 1 - α - β. All options have defaults, so `CURRICULA.get(name)(progress)` is always valid.
"""

import math
from collections.abc import Callable
from typing import Literal, get_args

from c2fmae.core.registry import Registry

Phase = Literal["semantic", "instance", "random"]
Order = tuple[Phase, Phase, Phase]
Knot = tuple[float, float, float]
"""(progress, α, β)"""

TOP_DOWN: Order = ("semantic", "instance", "random")

CURRICULA: Registry[Callable[[float], tuple[float, float]]] = Registry("curriculum")


@CURRICULA.register("triangle")
def triangle(progress: float, *, order: Order = TOP_DOWN) -> tuple[float, float]:
    """Linear slopes: the first phase fades out until progress ½, the second peaks there, the third grows from there.

    >>> [triangle(t) for t in (0, 0.25, 0.5, 1)]
    [(1.0, 0.0), (0.5, 0.5), (0.0, 1.0), (0.0, 0.0)]
    """
    _check_progress(progress)
    first, last = max(0.0, 1 - 2.0 * progress), max(0.0, 2.0 * progress - 1)
    return _assign_coefficients(order, first, last)


@CURRICULA.register("cosine")
def cosine(progress: float, *, order: Order = TOP_DOWN) -> tuple[float, float]:
    """Like triangle with cosine slopes, flat at the peak of each phase."""
    _check_progress(progress)
    lead = math.cos(math.pi * progress) ** 2
    return _assign_coefficients(order, lead if progress < 0.5 else 0.0, lead if progress > 0.5 else 0.0)


DEFAULT_KNOTS: tuple[Knot, ...] = ((0.3, 1.0, 0.0), (0.4, 0.0, 1.0), (0.6, 0.0, 1.0), (0.7, 0.0, 0.0))


@CURRICULA.register("piecewise")
def piecewise(progress: float, *, knots: tuple[Knot, ...] = DEFAULT_KNOTS) -> tuple[float, float]:
    """Linear interpolation between knots (progress, α, β); constant before the first and after the last.

    >>> piecewise(0.25, knots=((0.0, 0.0, 1.0), (0.5, 0.5, 0.0)))
    (0.25, 0.5)
    """
    _check_progress(progress)
    times = [time for time, _, _ in knots]
    if not knots or times != sorted(set(times)):
        raise ValueError(f"knots: expected at least one, with increasing progress, got {times}")
    for time, alpha, beta in knots:
        _check_coefficients(f"knot at {time}", alpha, beta)
    after = sum(time <= progress for time in times)
    if after in (0, len(knots)):
        _, alpha, beta = knots[min(after, len(knots) - 1)]
        return alpha, beta
    (start, *a), (end, *b) = knots[after - 1 : after + 1]
    step = (progress - start) / (end - start)
    alpha, beta = (low + step * (high - low) for low, high in zip(a, b, strict=True))
    return alpha, beta


@CURRICULA.register("constant")
def constant(progress: float, *, alpha: float = 1 / 3, beta: float = 1 / 3) -> tuple[float, float]:
    """Constant coefficients; 1/3 each by default."""
    _check_progress(progress)
    _check_coefficients("constant", alpha, beta)
    return alpha, beta


def _assign_coefficients(order: Order, first: float, last: float) -> tuple[float, float]:
    if sorted(order) != sorted(get_args(Phase)):
        raise ValueError(f"order: expected semantic, instance and random in any order, got {', '.join(order)}")
    coefficient = dict(zip(order, (first, 1 - first - last, last), strict=True))
    return coefficient["semantic"], coefficient["instance"]


def _check_coefficients(where: str, alpha: float, beta: float) -> None:
    if not (alpha >= 0 and beta >= 0 and alpha + beta <= 1 + 1e-9):
        raise ValueError(f"{where}: expected α and β of at least 0, together at most 1, got {alpha} and {beta}")


def _check_progress(progress: float) -> None:
    if not 0 <= progress <= 1:
        raise ValueError(f"progress: expected a number in [0, 1], got {progress}")
