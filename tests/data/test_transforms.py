import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from c2fmae.core.errors import UserError
from c2fmae.core.pixels import standardise
from c2fmae.core.scene import Scene
from c2fmae.data.generated import GeneratedScenes
from c2fmae.data.transforms import CentralView, RandomView, random_crop_box
from tests.data.dataset_files import assert_user_error

pytestmark = pytest.mark.numeric

units = arrays(np.float64, (10, 4), elements=st.floats(0, 1, exclude_max=True))


def scene(height: int = 60, width: int = 80) -> Scene:
    """Return a scene whose red and green show its two objects, as do both maps."""
    instance = torch.zeros(height, width, dtype=torch.uint8)
    instance[height // 4 : height // 2, width // 3 : width // 2] = 9
    instance[-height // 4 :, : width // 2] = 5
    semantic = (instance == 9).to(torch.uint8) + 2 * (instance == 5).to(torch.uint8)
    rgb = torch.stack([127 * (semantic == 1), 127 * (semantic == 2), 60 * semantic]).to(torch.uint8)
    return Scene("key", {"semantic": semantic, "instance": instance, "rgb": rgb}, 3)


@given(st.integers(1, 400), st.integers(1, 400), units)
def test_a_random_box_is_inside_the_image(height: int, width: int, noise: np.ndarray) -> None:
    box = random_crop_box(height, width, noise)
    assert 0 <= box.top <= box.top + box.height <= height
    assert 0 <= box.left <= box.left + box.width <= width
    assert box.height > 0
    assert box.width > 0


@given(st.integers(200, 400), st.integers(200, 400), units)
def test_a_random_box_has_the_area_and_aspect_ratio_of_its_noise(height: int, width: int, noise: np.ndarray) -> None:
    noise[0, :2] = [0.2, noise[0, 1]]  # small enough for any aspect ratio to fit: √(0.36 · 200 · 400 · 4/3) < 200
    box = random_crop_box(height, width, noise)
    assert math.isclose(box.height * box.width, 0.36 * height * width, rel_tol=0.02)
    shape = (3 / 4) ** (1 - 2 * noise[0, 1])
    assert math.isclose(box.width / box.height, shape, rel_tol=0.02)


def test_random_boxes_are_distributed_like_those_of_torchvision() -> None:
    from torchvision.transforms import RandomResizedCrop

    rng, image = np.random.default_rng(0), torch.zeros(3, 90, 120)
    ours = np.array(
        [[(b := random_crop_box(90, 120, rng.random((10, 4)))).top, b.left, b.height, b.width] for _ in range(4000)]
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = np.array([RandomResizedCrop.get_params(image, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)])
    for column in range(4):
        for percent in (10, 25, 50, 75, 90):
            gap = np.percentile(ours[:, column], percent) - np.percentile(theirs[:, column], percent)
            assert abs(gap) <= 3


def test_the_central_box_is_returned_if_no_attempt_fits() -> None:
    box = random_crop_box(10, 300, np.full((10, 4), 0.99))
    assert (box.top, box.height, box.width) == (0, 10, 13)
    assert box.left == (300 - 13) // 2


@given(st.integers(0, 2**32))
def test_a_random_view_is_a_function_of_its_noise_and_stays_aligned(seed: int) -> None:
    view = RandomView(size=(32, 48), label_stride=4, max_instances=8)
    first, second = (view(scene(), np.random.default_rng(seed)) for _ in range(2))
    assert all(torch.equal(first.maps[name], second.maps[name]) for name in first.maps)
    assert {name: tuple(tensor.shape) for name, tensor in first.maps.items()} == {
        "semantic": (8, 12),
        "instance": (8, 12),
        "rgb": (3, 32, 48),
    }
    assert (first.key, first.label, first.label_stride) == ("key", 3, 4)
    assert torch.equal(first.maps["semantic"] > 0, first.maps["instance"] > 0)
    means = torch.nn.functional.avg_pool2d(first.maps["rgb"][None].float(), 4)[0]
    for channel, class_id in ((0, 1), (1, 2)):  # a cell at a corner has its centre, so a quarter of its area, inside
        assert (means[channel][first.maps["semantic"] == class_id] > 127 / 4 - 2).all()


def recoloured(scene: Scene) -> Scene:
    """Return the same maps with an image of the ids: red for classes, green for objects."""
    semantic, instance = scene.maps["semantic"], scene.maps["instance"]
    rgb = torch.stack([10 * semantic, 15 * instance, 0 * semantic])
    return Scene(scene.key, {**scene.maps, "rgb": rgb}, scene.label)


@pytest.mark.parametrize("label_stride", [1, 2, 4])
@pytest.mark.parametrize("view", [RandomView, CentralView], ids=lambda view: view.__name__)
@pytest.mark.parametrize("index", range(8))
def test_an_image_of_its_ids_stays_aligned_with_the_maps(
    view: type[RandomView | CentralView], index: int, label_stride: int
) -> None:
    scene = recoloured(GeneratedScenes(size=96, difficulty="easy")[index])
    sample = view(size=(64, 80), label_stride=label_stride)(scene, np.random.default_rng(index))
    cells = torch.nn.functional.avg_pool2d(sample.maps["rgb"][None].float(), label_stride)[0]
    semantic, instance = sample.maps["semantic"], sample.maps["instance"]
    # Away from borders, where only the image is interpolated.
    combined, reach = semantic + 32.0 * instance, {1: 3, 2: 2, 4: 1}[label_stride]
    padded = torch.nn.functional.pad(combined[None, None], [reach] * 4, mode="replicate")
    around = padded.unfold(2, 2 * reach + 1, 1).unfold(3, 2 * reach + 1, 1)
    is_inner = (around == combined[..., None, None]).all(dim=-1).all(dim=-1)[0, 0]
    assert is_inner.float().mean() > 0.1
    is_own = (cells[0] - 10 * semantic)[is_inner].abs() < 5  # nearest to its own class
    assert is_own.float().mean() > 0.95  # a stem may be thinner than a cell
    # Objects are renumbered by the crop, but each still has one colour.
    objects = [cells[1][is_inner & (instance == rank)] for rank in range(1, int(instance.max()) + 1)]
    deviations = torch.cat([colours - colours.median() for colours in objects if len(colours)] or [torch.zeros(1)])
    assert (deviations.abs() < 7).float().mean() > 0.8


def test_instances_are_renumbered_by_size_after_the_crop() -> None:
    instance = CentralView(size=(60, 60))(scene(60, 60)).maps["instance"]
    assert (instance == 1).sum() > (instance == 2).sum() > 0
    assert set(instance.unique().tolist()) == {0, 1, 2}
    ignored = CentralView(size=(60, 60), max_instances=2)(scene(60, 60)).maps["instance"]
    assert set(ignored.unique().tolist()) == {0, 1, 255}
    background = CentralView(size=(60, 60), max_instances=2, overflow="background")(scene(60, 60)).maps["instance"]
    assert set(background.unique().tolist()) == {0, 1}


def test_views_are_flipped_with_the_given_probability() -> None:
    gradient = Scene("key", {"rgb": torch.arange(80, dtype=torch.uint8).expand(3, 60, 80)})

    def count_flipped(flip: float) -> int:
        view = RandomView(size=(16, 16), flip=flip)
        images = (view(gradient, np.random.default_rng(seed)).maps["rgb"] for seed in range(200))
        return sum(int(image[0, 0, 0] > image[0, 0, -1]) for image in images)

    assert (count_flipped(0.0), count_flipped(1.0)) == (0, 200)
    assert 70 < count_flipped(0.5) < 130


def test_a_central_view_is_the_centre_of_the_image() -> None:
    image = torch.zeros(3, 40, 60, dtype=torch.uint8)
    image[:, :, 10:50] = 200
    assert (CentralView(size=(40, 40))(Scene("key", {"rgb": image})).maps["rgb"] == 200).all()
    ramp = Scene("key", {"rgb": torch.arange(200, dtype=torch.uint8).expand(3, 100, 200)})
    assert CentralView(size=(100, 200))(ramp).maps["rgb"][0, 0, [0, -1]].tolist() == [0, 199]
    assert CentralView(size=(100, 50))(ramp).maps["rgb"][0, 0, [0, -1]].tolist() == [75, 124]
    assert CentralView(size=(50, 100), crop=0.5)(ramp).maps["rgb"][0, 0, [0, -1]].tolist() == [50, 149]


def test_a_random_view_covers_the_given_fraction_of_the_image() -> None:
    ramp = Scene("key", {"rgb": torch.arange(200, dtype=torch.uint8).expand(3, 100, 200)})

    def ends(scale: float) -> list[int]:
        view = RandomView(size=(100, 200), scale=(scale, scale), ratio=(2, 2), flip=0)
        ends: list[int] = view(ramp, np.random.default_rng(0)).maps["rgb"][0, 0, [0, -1]].tolist()
        return ends

    assert ends(1.0) == [0, 199]
    assert ends(0.25)[1] - ends(0.25)[0] == pytest.approx(99, abs=2)


def test_a_scene_without_maps_can_be_viewed() -> None:
    image = Scene("key", {"rgb": scene().maps["rgb"]})
    assert list(RandomView(size=(16, 16), label_stride=4)(image, np.random.default_rng(0)).maps) == ["rgb"]


def test_a_label_stride_that_does_not_divide_the_size_is_refused() -> None:
    assert_user_error(
        lambda: RandomView(size=(30, 32), label_stride=4), "label_stride: expected a divisor of the size 30×32, got 4"
    )
    assert_user_error(
        lambda: CentralView(size=(32, 30), label_stride=4), "label_stride: expected a divisor of the size 32×30, got 4"
    )


@pytest.mark.parametrize(
    ("view", "settings", "message"),
    [
        (RandomView, {"size": 224}, "size: expected height and width as positive integers, got 224"),
        (RandomView, {"size": (0, 8)}, "size: expected height and width as positive integers, got (0, 8)"),
        (RandomView, {"scale": (0.5, 2)}, "scale: expected two ascending fractions in (0, 1], got (0.5, 2)"),
        (RandomView, {"ratio": (0, 1)}, "ratio: expected two ascending numbers above 0, got (0, 1)"),
        (RandomView, {"flip": 2}, "flip: expected a probability, got 2"),
        (RandomView, {"label_stride": 0}, "label_stride: expected at least 1, got 0"),
        (CentralView, {"crop": 1.5}, "crop: expected a fraction in (0, 1], got 1.5"),
        (CentralView, {"max_instances": 0}, "max_instances: expected 1 to 255, got 0"),
        (CentralView, {"overflow": "drop"}, "overflow: expected 'ignore' or 'background', got 'drop'"),
    ],
)
def test_invalid_settings_are_refused(
    view: type[RandomView | CentralView], settings: dict[str, object], message: str
) -> None:
    with pytest.raises((UserError, TypeError)) as refusal:  # with shape checks wrong types are a TypeError
        view(**{"size": (8, 8), **settings})  # type: ignore[arg-type]
    assert str(refusal.value) == message or type(refusal.value).__name__ == "TypeCheckError"


def test_standardised_images_have_the_given_mean_and_deviation() -> None:
    images = torch.randint(256, (4, 3, 8, 8), dtype=torch.uint8)
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.1, 0.2, 0.3])
    expected = (images / 255 - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)
    assert torch.allclose(standardise(images, mean, std), expected, atol=1e-5)
