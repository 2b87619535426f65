"""The curriculum, and what the three blends make of it."""

from typing import get_args

import torch
from jaxtyping import Bool, Integer
from PIL import Image
from torch import Tensor

from c2fmae.core.pictures import line_chart, stack
from c2fmae.eval.views.masks import Count, PatchedScenes
from c2fmae.masking import mask_scenes
from c2fmae.masking.config import CurriculumConfig, Share
from c2fmae.masking.policies import Blend, Policy, Progressive


class ScheduleView(PatchedScenes):
    """Settings of `c2fmae view schedule`."""

    scenes: Count = 64
    object_share: Share = 0.75
    points: Count = 101
    """Points of training that are drawn."""
    curriculum: CurriculumConfig = CurriculumConfig()


def draw_schedule(config: ScheduleView) -> Image.Image:
    """Draw α, β and the rest over training, and for each blend how much of each pure mask it hides."""
    curriculum = config.curriculum.build()
    times = [point / max(1, config.points - 1) for point in range(config.points)]
    coefficients = [curriculum(time) for time in times]
    charts = [
        line_chart(
            {
                "semantic, α": [alpha for alpha, _ in coefficients],
                "instance, β": [beta for _, beta in coefficients],
                "random, 1−α−β": [1 - alpha - beta for alpha, beta in coefficients],
            },
            times,
            title=f"Curriculum {config.curriculum.name}: the coefficients",
            x_label="progress of training",
            y_label="coefficient",
            y_range=(0, 1),
        )
    ]
    regions, instances = config.regions(config.load())
    charts += [
        line_chart(
            overlap(config, blend, times, regions, instances),
            times,
            title=f"Blend {blend}: how much of each mask is hidden",
            x_label=f"progress of training · chance is {config.hidden:.2f}, the share that is hidden",
            y_label="overlap",
            y_range=(0.5, 1),
        )
        for blend in get_args(Blend)
    ]
    return stack(charts, columns=2)


def overlap(
    config: ScheduleView,
    blend: Blend,
    times: list[float],
    regions: Integer[Tensor, "batch patch"],
    instances: Integer[Tensor, "batch patch"],
) -> dict[str, list[float]]:
    """Return, for each pure mask, the share of its hidden patches that the blend hides too."""

    def hidden(policy: Policy, progress: float) -> Bool[Tensor, "batch patch"]:
        # One granularity and one seed: the blend is made of exactly the pure masks that it is compared with.
        return mask_scenes(
            policy,
            regions,
            instances,
            num_visible=config.num_visible,
            progress=progress,
            generator=config.generator(),
            granularities=("rgb",),
        ).is_masked[:, 0]

    policy = Progressive(curriculum=config.curriculum.build(), blend=blend, object_share=config.object_share)
    blended = torch.stack([hidden(policy, time) for time in times])
    semantic, instance, random = (hidden(pure, 0.0) for pure in policy.pure)
    return {
        name: ((blended & pure).flatten(1).sum(dim=1) / pure.sum().clamp(min=1)).tolist()
        for name, pure in {"semantic": semantic, "instance": instance, "random": random}.items()
    }
