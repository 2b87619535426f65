"""Charts of a masking curriculum, and of the fraction of each base mask that the three blends hide."""

from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

import torch
from PIL import Image

from c2fmae.masking.policies import Blend, ProgressivePolicy
from c2fmae.report.drawing import draw_line_chart, stack_images
from c2fmae.views.config import ScheduleFigureConfig
from c2fmae.views.patched_scenes import PatchedScenes, load_patched_scenes, sample_masks


def draw_schedule(config: ScheduleFigureConfig) -> Image.Image:
    """Draw α, β and 1 − α − β over training, and for each blend the overlap with each base mask."""
    policy = config.masking.build()
    assert isinstance(policy, ProgressivePolicy)
    progress_values = [point / max(1, config.points - 1) for point in range(config.points)]
    coefficients = [policy.curriculum(progress) for progress in progress_values]
    charts = [
        draw_line_chart(
            {
                "semantic, α": [alpha for alpha, _ in coefficients],
                "instance, β": [beta for _, beta in coefficients],
                "random, 1−α−β": [1 - alpha - beta for alpha, beta in coefficients],
            },
            progress_values,
            title=f"Coefficients of the curriculum {config.masking.options.curriculum.name}",
            x_label="training progress",
            y_label="coefficient",
            y_range=(0, 1),
        )
    ]
    scenes = load_patched_scenes(config)
    charts += [
        draw_line_chart(
            compute_mask_overlap(config, replace(policy, blend=blend), progress_values, scenes),
            progress_values,
            title=f"Blend {blend}: fraction of each base mask that is hidden",
            x_label=f"training progress · chance: {config.hidden:.2f}, the hidden fraction of all patches",
            y_label="overlap",
            y_range=(0.5 if config.hidden > 0.6 else 0, 1),
        )
        for blend in get_args(Blend)
    ]
    return stack_images(charts, columns=2)


def compute_mask_overlap(
    config: ScheduleFigureConfig, policy: ProgressivePolicy, progress_values: Sequence[float], scenes: PatchedScenes
) -> dict[str, list[float]]:
    """Return, for each base mask, the fraction of its hidden patches that a policy hides too, by training progress."""
    blended = torch.stack([sample_masks(config, policy, scenes, time).is_masked for time in progress_values])
    overlaps = {}
    for name, base_policy in zip(("semantic", "instance", "random"), policy.base_policies, strict=True):
        is_masked = sample_masks(config, base_policy, scenes, 0.0).is_masked
        overlaps[name] = ((blended & is_masked).flatten(1).sum(dim=1) / is_masked.sum().clamp(min=1)).tolist()
    return overlaps
