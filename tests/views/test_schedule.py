import pytest

from c2fmae.core.errors import UserError
from c2fmae.masking.policies import Blend, ProgressivePolicy
from c2fmae.views.config import ScheduleFigureConfig
from c2fmae.views.patched_scenes import load_patched_scenes
from c2fmae.views.schedule import compute_mask_overlap, draw_schedule

SMALL = {"scenes": 6, "size": 64, "patch": 8}
PROGRESS = (0.0, 0.2, 0.5, 0.8, 1.0)


def overlaps(blend: Blend, **settings: object) -> dict[str, list[float]]:
    config = ScheduleFigureConfig.model_validate({**SMALL, **settings})
    return compute_mask_overlap(config, ProgressivePolicy(blend=blend), PROGRESS, load_patched_scenes(config))


@pytest.mark.parametrize("blend", ["topk", "sample", "quota"])
def test_a_base_mask_is_hidden_completely_at_its_peak_and_by_chance_at_the_others(blend: Blend) -> None:
    fractions = overlaps(blend, scenes=16)
    for name, peak in (("semantic", 0), ("instance", 2), ("random", 4)):
        assert fractions[name][peak] == 1
        for other in {0, 2, 4} - {peak}:
            assert fractions[name][other] == pytest.approx(0.75, abs=0.05)


def test_topk_switches_between_masks_and_quota_mixes_them() -> None:
    assert overlaps("topk")["semantic"][1] == 1
    assert 0.8 < overlaps("quota")["semantic"][1] < 0.95


def test_a_schedule_has_a_chart_for_the_curriculum_and_one_for_each_blend() -> None:
    figure = draw_schedule(ScheduleFigureConfig.model_validate({**SMALL, "points": 3, "hidden": 0.3}))
    assert figure.width > 1200
    assert figure.height > 700


def test_only_the_progressive_policy_has_a_schedule() -> None:
    with pytest.raises(UserError) as caught:
        ScheduleFigureConfig.from_dict({"masking": "random"}, source="view schedule")
    assert str(caught.value) == (
        "view schedule: masking.name: expected 'progressive', which has a schedule, got 'random'"
    )
