"""Changes of colours: torchvision's at equal factors, and functions of their noise."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision import transforms
from torchvision.transforms.v2 import functional as tv

from c2fmae.core.view_options import ColourOptions
from c2fmae.data.colour import ColourChange, blur_image, change_colours, draw_colour_change
from c2fmae.data.generated import GeneratedScenes

pytestmark = pytest.mark.numeric

IMAGE = GeneratedScenes(size=48, length=1)[0].maps["rgb"][:, :40]
ALL = ColourOptions(
    jitter=(0.4, 0.3, 0.2, 0.1), jitter_chance=0.8, grey_chance=0.2, blur_chance=0.5, solarise_chance=0.3
)


def greatest_difference(first: Tensor, second: Tensor) -> int:
    return int((first.int() - second.int()).abs().max())


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
@pytest.mark.parametrize("noise", [0.0, 0.3, 0.99])
def test_one_change_is_that_of_color_jitter_at_the_same_factor(name: str, noise: float) -> None:
    factor = noise - 0.5 if name == "hue" else 2 * noise
    peer = transforms.ColorJitter(**{name: (factor, factor)})
    theirs = tv.pil_to_tensor(peer(tv.to_pil_image(IMAGE)))
    ours = change_colours(IMAGE, ColourChange(jitter=((name, factor),)))
    assert torch.equal(ours, theirs)
    assert greatest_difference(ours, IMAGE) > 10
    if name != "hue":  # Pillow rounds hue, saturation and value to bytes, which tensors do not
        assert greatest_difference(ours, peer(IMAGE)) <= 1


def test_changes_are_made_in_the_order_of_the_draw() -> None:
    jitter = (("hue", 0.2), ("contrast", 1.4), ("brightness", 0.7), ("saturation", 1.3))
    expected = tv.to_pil_image(IMAGE)
    for name, factor in jitter:
        expected = getattr(tv, f"adjust_{name}")(expected, factor)
    changed = change_colours(IMAGE, ColourChange(jitter=jitter))
    assert torch.equal(changed, tv.pil_to_tensor(expected))
    assert not torch.equal(changed, change_colours(IMAGE, ColourChange(jitter=jitter[::-1])))
    sequence = change_colours(changed, ColourChange(is_grey=True))
    sequence = change_colours(sequence, ColourChange(blur_sigma=0.8))
    sequence = change_colours(sequence, ColourChange(is_solarised=True))
    assert torch.equal(change_colours(IMAGE, ColourChange(jitter, True, 0.8, True)), sequence)


def test_grey_and_solarised_images_are_those_of_torchvision() -> None:
    pixels = tv.to_pil_image(IMAGE)
    grey = change_colours(IMAGE, ColourChange(is_grey=True))
    assert torch.equal(grey, tv.pil_to_tensor(transforms.functional.rgb_to_grayscale(pixels, 3)))
    assert greatest_difference(grey, tv.rgb_to_grayscale(IMAGE, 3)) <= 1
    solarised = change_colours(IMAGE, ColourChange(is_solarised=True))
    assert torch.equal(solarised, tv.pil_to_tensor(transforms.functional.solarize(pixels, 128)))


@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
def test_a_blurred_image_is_that_of_gaussian_blur(sigma: float) -> None:
    theirs = transforms.GaussianBlur(23, (sigma, sigma))(IMAGE)
    ours = blur_image(IMAGE, sigma)
    assert greatest_difference(ours, theirs) <= 1
    assert (ours != theirs).float().mean() < 0.01
    assert (greatest_difference(ours, IMAGE) > 10) == (sigma > 0.5)


@pytest.mark.parametrize("size", [(1, 1), (2, 7), (6, 3)])
def test_a_blur_that_is_wider_than_the_image_keeps_its_brightness(size: tuple[int, int]) -> None:
    assert (blur_image(torch.full((3, *size), 93, dtype=torch.uint8), 2.0) == 93).all()


def test_no_change_returns_the_image_itself() -> None:
    for seed in range(20):
        assert draw_colour_change(ColourOptions(), np.random.default_rng(seed)) == ColourChange()
    assert change_colours(IMAGE, ColourChange()) is IMAGE


def test_draws_have_the_frequencies_and_ranges_of_the_options() -> None:
    rng = np.random.default_rng(0)
    changes = [draw_colour_change(ALL, rng) for _ in range(4000)]
    for chance, values in {
        ALL.jitter_chance: [len(change.jitter) == 4 for change in changes],
        ALL.grey_chance: [change.is_grey for change in changes],
        ALL.blur_chance: [change.blur_sigma is not None for change in changes],
        ALL.solarise_chance: [change.is_solarised for change in changes],
    }.items():
        assert abs(np.mean(values) - chance) < 0.03
    sigmas = np.array([change.blur_sigma for change in changes if change.blur_sigma is not None])
    assert np.allclose((sigmas.min(), sigmas.mean(), sigmas.max()), (0.1, 1.05, 2.0), atol=0.03)
    jittered = [change.jitter for change in changes if change.jitter]
    for number, name in enumerate(("brightness", "contrast", "saturation", "hue")):
        factors = np.array([dict(jitter)[name] for jitter in jittered])
        middle, strength = (0.0 if name == "hue" else 1.0), ALL.jitter[number]
        expected = (middle - strength, middle, middle + strength)
        assert np.allclose((factors.min(), factors.mean(), factors.max()), expected, atol=0.02)
    brightness, contrast = ([dict(jitter)[name] for jitter in jittered] for name in ("brightness", "contrast"))
    assert abs(np.corrcoef(brightness, contrast)[0, 1]) < 0.1  # drawn independently
    orders = {tuple(name for name, _ in jitter) for jitter in jittered}
    assert len(orders) == 24
    assert abs(np.mean([jitter[0][0] == "hue" for jitter in jittered]) - 0.25) < 0.03


def test_a_strong_jitter_never_inverts_an_image() -> None:
    options = ColourOptions(jitter=(2.0, 0.0, 0.0, 0.0), jitter_chance=1.0)
    factors = [draw_colour_change(options, np.random.default_rng(seed)).jitter[0][1] for seed in range(200)]
    assert 0 <= min(factors) < 0.1
    assert 2.9 < max(factors) <= 3


def test_a_draw_does_not_depend_on_other_options() -> None:
    options = ColourOptions(jitter=(0.4, 0.0, 0.0, 0.1), jitter_chance=1.0, blur_chance=0.5)
    for seed in range(20):
        complete, drawn = (draw_colour_change(each, np.random.default_rng(seed)) for each in (ALL, options))
        assert drawn.blur_sigma == complete.blur_sigma
        assert [name for name, _ in drawn.jitter] in (["brightness", "hue"], ["hue", "brightness"])
        if complete.jitter:
            assert drawn.jitter == tuple(each for each in complete.jitter if each in drawn.jitter)
