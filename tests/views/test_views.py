import numpy as np
import pytest
from PIL import Image

from c2fmae.core.errors import UserError
from c2fmae.views.masks import MasksFigureConfig, draw_masks
from c2fmae.views.schedule import ScheduleFigureConfig, compute_mask_overlap, draw_schedule

SMALL = {"scenes": 6, "size": 64, "patch": 8}


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"))


def overlaps(blend: str, **settings: object) -> dict[str, list[float]]:
    config = ScheduleFigureConfig.model_validate({**SMALL, **settings})
    regions, instances = config.compute_regions(config.load_scenes())
    return compute_mask_overlap(config, blend, [0.0, 0.2, 0.5, 0.8, 1.0], regions, instances)  # type: ignore[arg-type]


@pytest.mark.parametrize("blend", ["topk", "sample", "quota"])
def test_at_the_peaks_a_mask_is_hidden_whole_and_the_others_by_chance(blend: str) -> None:
    shares = overlaps(blend, scenes=16)
    for name, peak in (("semantic", 0), ("instance", 2), ("random", 4)):
        assert shares[name][peak] == 1
        for other in {0, 2, 4} - {peak}:
            assert shares[name][other] == pytest.approx(0.75, abs=0.05)


def test_topk_switches_where_quota_mixes() -> None:
    assert overlaps("topk")["semantic"][1] == 1
    assert 0.8 < overlaps("quota")["semantic"][1] < 0.95


def test_the_pictures_are_the_same_each_time_and_follow_the_settings() -> None:
    config = MasksFigureConfig.model_validate({**SMALL, "scenes": 2})
    first = pixels(draw_masks(config))
    assert np.array_equal(first, pixels(draw_masks(config)))
    other = pixels(draw_masks(config.override(["masking.options.object_share=0.1"])))
    assert first.shape == other.shape
    assert not np.array_equal(first, other)
    fewer = pixels(draw_masks(config.override(["scenes=1", "progress=[0.5]"])))
    assert fewer.shape[0] < first.shape[0]
    assert fewer.shape[1] < first.shape[1]


def test_a_schedule_has_a_chart_for_the_curriculum_and_one_for_each_blend() -> None:
    picture = draw_schedule(ScheduleFigureConfig.model_validate({**SMALL, "points": 3, "hidden": 0.3}))
    assert picture.width > 1200
    assert picture.height > 700


def test_only_the_progressive_policy_has_a_schedule() -> None:
    with pytest.raises(UserError) as caught:
        ScheduleFigureConfig.from_dict({"masking": "random"}, source="view schedule")
    assert (
        str(caught.value) == "view schedule: masking.name: expected 'progressive', which has a schedule, got 'random'"
    )


def test_more_scenes_than_there_are_is_refused() -> None:
    with pytest.raises(UserError, match="^scenes: generated has 1024, fewer than 2000$"):
        MasksFigureConfig.model_validate({"scenes": 2000, "size": 32}).load_scenes()
