"""Objects by cuts of patch features: where they are in the image, and which backbones make them."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from c2fmae.core.errors import UserError
from c2fmae.core.specs import BackboneSpec
from c2fmae.labelling.context import LabellerContext
from c2fmae.labelling.cuts import snap_to_regions
from c2fmae.labelling.normalised_cuts import PatchObject
from c2fmae.labelling.patch_features import PatchFeatureConfig, PatchFeatures
from c2fmae.labelling.protocol import LabelInput
from c2fmae.labelling.registry import build_labellers
from tests.eval.classification.tiny_finetuning import ENCODER, write_pretrained_checkpoint
from tests.eval.segmentation.tiny_segmenters import draw_image

CONTEXT = LabellerContext()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pretrained_checkpoint(tmp_path_factory.mktemp("checkpoint"))


def draw_square(height: int, width: int) -> Tensor:
    """Return a noisy image with a bright square a quarter of the height and width large, in its upper left half."""
    image = torch.randint(40, (3, height, width), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    image[:, height // 4 : height // 2, width // 4 : width // 2] += 200
    return image


def test_an_object_is_where_its_patches_are(checkpoint: Path) -> None:
    options = {"grid_size": 16, "max_objects": 1}
    (labeller,) = build_labellers(None, f"cuts:{checkpoint}", CONTEXT, instances_options=options)
    (result,) = labeller.label([LabelInput("a", draw_square(60, 90))], 1)
    (found,) = result.objects
    assert 0 < found.score <= 1
    is_square = torch.zeros(60, 90, dtype=torch.bool)
    is_square[15:30, 22:45] = True
    is_object = result.maps["instance"] > 0
    assert int((is_object & is_square).sum()) / int((is_object | is_square).sum()) > 0.5  # interpolation rounds corners


def test_an_object_becomes_the_regions_that_it_mostly_covers() -> None:
    levels = torch.full((4, 4), -1.0, dtype=torch.float64)
    levels[:, :2] = 1  # positive in the left half
    regions = np.ones((8, 8), np.int32)
    regions[:4, :5], regions[4:, 3:] = 2, 3  # of regions 1 to 3, 50 %, 80 % and 20 % are in the left half
    snapped = snap_to_regions(PatchObject(levels, 0.0), regions)
    assert snapped.equal(torch.from_numpy(regions == 2))


def test_features_are_those_of_the_resized_image(checkpoint: Path) -> None:
    image = draw_image(40, 40)
    last = PatchFeatures(PatchFeatureConfig(backbone=str(checkpoint), grid_size=5), CONTEXT)
    (expected,) = last._backbone.feature_maps(last._backbone.standardise(image[None]), [3])
    torch.testing.assert_close(last.compute(image), expected[0].detach())  # of 5 × 5 patches of 8 pixels
    earlier = PatchFeatures(PatchFeatureConfig(backbone=str(checkpoint), grid_size=5, layer=2), CONTEXT)
    assert not torch.allclose(earlier.compute(image), last.compute(image))
    assert earlier.describe() != last.describe()


@pytest.mark.parametrize("text", ["regions", "cuts:{checkpoint}"])
def test_missing_packages_are_named_before_the_work(
    text: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "skimage.segmentation", None)
    options = {"snap": True} if text.startswith("cuts") else {}
    with pytest.raises(UserError, match=r'needs the package scikit-image. Install it: pip install "c2fmae.regions."'):
        build_labellers(None, text.format(checkpoint=checkpoint), CONTEXT, instances_options=options)


def test_unsuitable_backbones_are_rejected(checkpoint: Path, tmp_path: Path) -> None:
    spec = BackboneSpec(encoder=ENCODER, image_size=(16, 16), channels={"rgb": 1}, mean=(0.5,), std=(0.5,))
    grey = write_pretrained_checkpoint(tmp_path, spec)
    for text, options, message in (
        (f"cuts:{grey}", {}, "does not take RGB images. Use a backbone that does"),
        (f"cuts:{checkpoint}", {"layer": 4}, "layer: .* has 3 blocks, got 4"),
        ("cuts", {}, "needs backbone. Write --instances cuts:BACKBONE"),
        (f"cuts:{tmp_path / 'nothing'}", {}, "does not exist"),
    ):
        with pytest.raises(UserError, match=message):
            build_labellers(None, text, CONTEXT, instances_options=options)
