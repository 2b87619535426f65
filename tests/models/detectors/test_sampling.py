import pytest
import torch
from torch import Tensor
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou

from c2fmae.models.detectors import sampling
from c2fmae.models.detectors.sampling import match_boxes, random_keys, sample_boxes
from tests.models.detectors.noise_detectors import draw_boxes

SEEDS = torch.tensor([0, 1, 2**63 - 1])


def match_with_torchvision(boxes: Tensor, objects: Tensor, fg: float, bg: float, *, low: bool) -> Tensor:
    matches: Tensor = Matcher(fg, bg, allow_low_quality_matches=low)(box_iou(objects, boxes))
    return matches


@pytest.mark.parametrize("allow_low_quality", [False, True])
@pytest.mark.parametrize("max_pairs", [2**24, 50])
def test_matches_equal_torchvisions(allow_low_quality: bool, max_pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "_MAX_PAIRS", max_pairs)
    objects = [draw_boxes(count, seed=count).double() for count in (5, 1)]
    objects[0][4] = objects[0][1] + 40  # far from most boxes, and from an equal one
    boxes = torch.stack([draw_boxes(40, seed=seed).double() for seed in (7, 8)])
    boxes[:, 5] = boxes[:, 6]  # two boxes that are equally good
    matches = match_boxes(boxes, objects, fg_iou=0.5, bg_iou=0.3, allow_low_quality=allow_low_quality)
    for image, first in enumerate((0, 5)):
        expected = match_with_torchvision(boxes[image], objects[image], 0.5, 0.3, low=allow_low_quality)
        assert torch.equal(matches.is_positive[image], expected >= 0)
        assert torch.equal(matches.is_negative[image], expected == Matcher.BELOW_LOW_THRESHOLD)
        is_match = expected >= 0
        assert torch.equal(matches.objects[image][is_match], expected[is_match] + first)


def test_an_object_that_overlaps_no_box_has_no_best_one() -> None:
    boxes = torch.tensor([[0.0, 0, 4, 4], [20, 20, 24, 24]])[None]
    objects = [torch.tensor([[10.0, 10, 12, 12]])]
    matches = match_boxes(boxes, objects, fg_iou=0.7, bg_iou=0.3, allow_low_quality=True)
    assert not matches.is_positive.any()
    assert matches.is_negative.all()


def test_all_boxes_of_an_image_without_objects_are_negative() -> None:
    matches = match_boxes(draw_boxes(6)[None], [torch.zeros(0, 4)], fg_iou=0.7, bg_iou=0.3, allow_low_quality=True)
    assert not matches.is_positive.any()
    assert matches.is_negative.all()


def test_random_keys_depend_on_seed_stream_and_position_only() -> None:
    keys = random_keys(SEEDS, 1000, stream=0)
    assert torch.equal(random_keys(SEEDS[1:2], 500, stream=0), keys[1:2, :500])
    assert torch.equal(torch.cat([random_keys(seed[None], 1000, 0) for seed in SEEDS]), keys)
    other = random_keys(SEEDS, 1000, stream=1)
    assert len(torch.cat([keys, other]).unique()) == 6000
    assert keys.min() >= 0


def test_random_keys_look_random() -> None:
    keys = random_keys(torch.arange(64), 1024, stream=0).double() / 2**63
    assert abs(keys.mean() - 0.5) < 0.005
    assert abs(keys.std() - 12**-0.5) < 0.005
    bits = (random_keys(torch.arange(64), 1024, 0)[:, :, None] >> torch.arange(63) & 1).double()
    assert (bits.mean(dim=(0, 1)) - 0.5).abs().max() < 0.01  # 5 standard deviations of 65,536 coins
    correlation = torch.corrcoef(keys) - torch.eye(64)
    assert correlation.abs().max() < 0.16  # 5 standard deviations


def test_samples_have_the_requested_numbers() -> None:
    kinds = torch.zeros(3, 30, dtype=torch.int64)
    kinds[0, :20], kinds[1, :2] = 1, 1  # many positive boxes, few, and none
    kinds[:, 28:] = 2  # neither
    keys = random_keys(SEEDS, 30, stream=0)
    samples = sample_boxes(kinds == 1, kinds == 0, keys, samples_per_image=12, positive_fraction=0.25)
    assert samples.is_positive.sum(dim=1).tolist() == [3, 2, 0]
    assert samples.is_used.sum(dim=1).tolist() == [11, 12, 12]  # the first has only 8 negative ones
    for image in range(3):
        rows = samples.rows[image][samples.is_used[image]]
        assert len(rows.unique()) == len(rows)
        assert torch.equal(kinds[image, rows], samples.is_positive[image][samples.is_used[image]].long())
    few = sample_boxes(kinds[:, :2] == 1, kinds[:, :2] == 0, keys[:, :2], samples_per_image=12, positive_fraction=0.25)
    assert few.is_used.sum(dim=1).tolist() == [2, 2, 2]


def test_every_box_is_sampled_equally_often() -> None:
    is_positive = torch.zeros(2000, 10, dtype=torch.bool)
    samples = sample_boxes(
        is_positive, ~is_positive, random_keys(torch.arange(2000), 10, 0), samples_per_image=3, positive_fraction=0.5
    )
    counts = torch.bincount(samples.rows[samples.is_used], minlength=10)
    assert (counts - 600).abs().max() < 100  # 5 standard deviations
