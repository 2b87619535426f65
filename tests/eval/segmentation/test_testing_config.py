import subprocess
import sys

import pytest

from c2fmae.core.errors import UserError
from c2fmae.eval.segmentation.testing_config import TestingConfig


def test_windows_and_strides_follow_the_training_crop() -> None:
    assert TestingConfig().resolve_window((512, 512)) == ((512, 512), (341, 341))
    assert TestingConfig().resolve_window((96, 128)) == ((96, 128), (64, 85))
    assert TestingConfig(window=640, stride=320).resolve_window((512, 512)) == ((640, 640), (320, 320))
    assert TestingConfig(stride=512).resolve_window((96, 128)) == ((96, 128), (96, 128))


@pytest.mark.parametrize(
    ("size", "scale", "expected"),
    [
        ((683, 512), 1.0, (683, 512)),
        ((512, 4096), 1.0, (256, 2048)),  # the longer side decides
        ((300, 401), 1.0, (512, 684)),
        ((600, 800), 0.5, (256, 341)),
        ((600, 800), 1.75, (896, 1195)),
        ((1, 5000), 1.0, (1, 2048)),
    ],
)
def test_sizes_are_those_of_mmsegmentation(size: tuple[int, int], scale: float, expected: tuple[int, int]) -> None:
    """Its `Resize` to (2048, 512), times the scale, keeping the ratio."""
    assert TestingConfig(short_side=512).resized_size(size, scale) == expected
    factor = min(2048 * scale / max(size), 512 * scale / min(size))
    assert tuple(max(int(side * factor + 0.5), 1) for side in size) == expected


def test_views_are_all_scales_with_and_without_a_flip() -> None:
    testing = TestingConfig(scales=(0.5, 1.0), flip=True)
    assert testing.list_views((10, 20)) == [
        ((5, 10), False),
        ((5, 10), True),
        ((10, 20), False),
        ((10, 20), True),
    ]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"window": 32, "stride": 33}, "stride: expected at most 32, the window, got 33. Pixels between windows would"),
        ({"mode": "whole", "stride": 32}, "stride: is not used with mode=whole. Leave it out, or use mode=slide"),
        ({"scales": [1, 1.0]}, "scales: expected different numbers, got [1.0, 1.0]. Leave out the repeated ones"),
        ({"scales": []}, "scales: "),
        ({"mode": "windows"}, "mode: "),
    ],
)
def test_settings_that_make_no_sense_are_rejected(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as caught:
        TestingConfig.from_dict(values, source="testing")
    assert message in str(caught.value)


def test_description_names_everything_that_changes_the_numbers() -> None:
    assert TestingConfig(short_side=512).describe((512, 512)) == (
        "windows of 512×512 every 341×341 pixels, their logits averaged where they overlap; shorter sides of images "
        "resized to 512, longer ones at most 2,048; one scale, not flipped; fp32"
    )
    assert TestingConfig(mode="whole", scales=(0.75, 1.25), flip=True, precision="bf16").describe((512, 512)) == (
        "whole images; images at their own size; 2 scales (0.75, 1.25) with and without a flip, probabilities "
        "averaged; bf16"
    )


@pytest.mark.unchecked
def test_settings_are_read_without_torch() -> None:
    code = "import sys, c2fmae.eval.segmentation.testing_config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
