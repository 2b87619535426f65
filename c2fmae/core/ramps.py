"""Numbers that change in training, such as the momentum of a teacher or a temperature."""

from typing import Annotated, Literal

from pydantic import Field

from c2fmae.core.config import Config
from c2fmae.core.schedules import warmup_cosine, warmup_linear
from c2fmae.core.training import TrainingPlan


class Ramp(Config):
    """A number that changes from `start` to `end`."""

    start: float
    """Value of the first step."""
    end: float
    shape: Literal["cosine", "linear"] = "cosine"
    """Course of the change: a half cosine, or a straight line."""
    epochs: Annotated[int, Field(ge=2)] | None = None
    """Number of epochs from `start` to `end`. The number then stays the same within an epoch: `start` in the first of
    them, `end` in the last of them and in all later ones. By default it changes with every step, over the whole run,
    and `end` would be reached by the step after the last."""


def compute_value(number: float | Ramp, step: int, plan: TrainingPlan) -> float:
    """Return the value of a number at a step, counted from 0.

    >>> plan = TrainingPlan(8, 0, 2, 4, 4, 1, 0.1, 0.0)  # 4 epochs of 2 steps
    >>> [compute_value(Ramp(start=0, end=1, shape="linear"), step, plan) for step in range(8)]
    [0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875]
    >>> [compute_value(Ramp(start=0, end=1, shape="linear", epochs=3), step, plan) for step in range(8)]
    [0.0, 0.0, 0.5, 0.5, 1.0, 1.0, 1.0, 1.0]
    """
    if not isinstance(number, Ramp):
        return number
    position, length = step, plan.steps
    if number.epochs is not None:
        position, length = step // plan.steps_per_epoch, number.epochs - 1
    decay = warmup_linear if number.shape == "linear" else warmup_cosine
    remaining = decay(position, total_steps=length, warmup_steps=0)
    return number.start * remaining + number.end * (1 - remaining)
