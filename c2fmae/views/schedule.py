"""The curriculum, and what the three blends make of it."""

from dataclasses import replace
from typing import get_args

import torch
from jaxtyping import Integer
from PIL import Image
from pydantic import model_validator
from torch import Tensor

from c2fmae.core.config import PositiveInt
from c2fmae.core.errors import UserError
from c2fmae.masking.policies import Blend, ProgressivePolicy
from c2fmae.report.drawing import draw_line_chart, stack_images
from c2fmae.views.masked_scenes import MaskedScenesConfig


class ScheduleFigureConfig(MaskedScenesConfig):
    """Settings of `c2fmae view schedule`, which draws every blend, whatever `masking.options.blend` is."""

    scenes: PositiveInt = 64
    points: PositiveInt = 101
    """Points of training that are drawn."""

    @model_validator(mode="after")
    def _check_policy(self) -> "ScheduleFigureConfig":
        if self.masking.name != "progressive":
            raise UserError(f"masking.name: expected 'progressive', which has a schedule, got {self.masking.name!r}")
        return self


def draw_schedule(config: ScheduleFigureConfig) -> Image.Image:
    """Draw α, β and the rest over training, and for each blend how much of each pure mask it hides."""
    policy = config.masking.build()
    assert isinstance(policy, ProgressivePolicy)
    progress_values = [point / max(1, config.points - 1) for point in range(config.points)]
    coefficients = [policy.curriculum(time) for time in progress_values]
    charts = [
        draw_line_chart(
            {
                "semantic, α": [alpha for alpha, _ in coefficients],
                "instance, β": [beta for _, beta in coefficients],
                "random, 1−α−β": [1 - alpha - beta for alpha, beta in coefficients],
            },
            progress_values,
            title=f"Curriculum {config.masking.options.curriculum.name}: the coefficients",
            x_label="progress of training",
            y_label="coefficient",
            y_range=(0, 1),
        )
    ]
    regions, instances = config.compute_regions(config.load_scenes())
    charts += [
        draw_line_chart(
            compute_mask_overlap(config, replace(policy, blend=blend), progress_values, regions, instances),
            progress_values,
            title=f"Blend {blend}: how much of each mask is hidden",
            x_label=f"progress of training · chance is {config.hidden:.2f}, the share that is hidden",
            y_label="overlap",
            y_range=(0.5 if config.hidden > 0.6 else 0, 1),
        )
        for blend in get_args(Blend)
    ]
    return stack_images(charts, columns=2)


def compute_mask_overlap(
    config: ScheduleFigureConfig,
    policy: ProgressivePolicy,
    progress_values: list[float],
    regions: Integer[Tensor, "batch patch"],
    instances: Integer[Tensor, "batch patch"],
) -> dict[str, list[float]]:
    """Return, for each pure mask, the share of its hidden patches that the policy hides too."""
    blended = torch.stack([config.mask_patches(policy, regions, instances, time) for time in progress_values])
    shares = {}
    for name, pure_policy in zip(("semantic", "instance", "random"), policy.base_policies, strict=True):
        pure_mask = config.mask_patches(pure_policy, regions, instances, 0.0)
        shares[name] = ((blended & pure_mask).flatten(1).sum(dim=1) / pure_mask.sum().clamp(min=1)).tolist()
    return shares
