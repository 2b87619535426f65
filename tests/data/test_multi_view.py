"""Views of one scene: functions of the generator, the name and the number, and parts of the same image."""

import pickle
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from c2fmae.core.scene import Scene, SceneBatch
from c2fmae.core.view_options import ColourOptions, ViewOptions
from c2fmae.data import CentralView, RandomView, Sampler, SceneLoader
from c2fmae.data.generated import GeneratedScenes
from c2fmae.data.multi_view import MultiView
from tests.data.dataset_files import assert_user_error

pytestmark = pytest.mark.numeric

SCENES = GeneratedScenes(size=64, length=6)
MAIN = RandomView(size=(32, 48), label_stride=4, max_instances=8, scale=(0.5, 1.0))
COLOUR = ColourOptions(jitter=(0.4, 0.4, 0.4, 0.1), jitter_chance=1.0)
OTHERS = {
    "second": ViewOptions(colour=COLOUR),
    "same": ViewOptions(crop="main"),
    "local": ViewOptions(size=(16, 16), scale=(0.05, 0.3), count=3),
}


def make_views(view: MultiView, index: int = 0) -> Scene:
    return view(SCENES[index], np.random.default_rng(index))


def position_image(height: int, width: int) -> Tensor:
    """Return an image whose channels are row and column, and 0."""
    rows, columns = (torch.arange(length, dtype=torch.uint8) for length in (height, width))
    return torch.stack([rows[:, None].expand(-1, width), columns.expand(height, -1), torch.zeros(height, width).byte()])


def assert_equal_tensors(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name])


@pytest.mark.parametrize("main", [MAIN, CentralView(size=(32, 48), label_stride=4)], ids=["random", "central"])
def test_the_main_view_is_the_same_without_further_views(main: RandomView | CentralView) -> None:
    for index in range(len(SCENES)):
        sample = make_views(MultiView(main=main, others=OTHERS, own_crops=MAIN), index)
        alone = main(SCENES[index], np.random.default_rng(index))
        assert_equal_tensors(sample.maps, alone.maps)
        assert (sample.key, sample.label, sample.label_stride) == (alone.key, alone.label, alone.label_stride)


def test_views_are_bytes_of_their_sizes_and_numbers() -> None:
    sample = make_views(MultiView(main=MAIN, others=OTHERS))
    assert {name: (tuple(view.shape), view.dtype) for name, view in sample.views.items()} == {
        "second": ((1, 3, 32, 48), torch.uint8),
        "same": ((1, 3, 32, 48), torch.uint8),
        "local": ((3, 3, 16, 16), torch.uint8),
    }
    assert len({view.numpy().tobytes() for view in sample.views["local"]}) == 3


def test_a_view_does_not_depend_on_other_views_or_its_number() -> None:
    changed = {
        "a first one": ViewOptions(),
        "local": OTHERS["local"].override(["count=5"]),
        "second": OTHERS["second"],
        "shown uncoloured": ViewOptions(crop="main"),
    }
    for index in range(len(SCENES)):
        views = make_views(MultiView(main=MAIN, others=OTHERS), index).views
        others = make_views(MultiView(main=MAIN, others=changed, main_colour=COLOUR), index).views
        assert torch.equal(views["second"], others["second"])
        assert torch.equal(views["local"], others["local"][:3])


def test_views_depend_on_the_generator_and_the_name() -> None:
    view = MultiView(main=MAIN, others={"second": ViewOptions(), "third": ViewOptions()})
    scene = SCENES[0]
    first, repeated, other = (view(scene, np.random.default_rng(seed)).views for seed in (0, 0, 1))
    assert_equal_tensors(first, repeated)
    assert not torch.equal(first["second"], other["second"])
    assert not torch.equal(first["second"], first["third"])


def test_a_view_of_the_main_crop_is_the_main_view_before_its_colours_change() -> None:
    others = {
        "plain": ViewOptions(crop="main"),
        "recoloured": ViewOptions(crop="main", colour=COLOUR),
        "small": ViewOptions(crop="main", size=(16, 24)),
    }
    for index in range(len(SCENES)):
        sample = make_views(MultiView(main=MAIN, others=others, main_colour=COLOUR), index)
        alone = make_views(MultiView(main=MAIN, others={}), index).maps["rgb"]
        assert torch.equal(sample.views["plain"][0], alone)
        assert not torch.equal(sample.maps["rgb"], alone)
        assert not torch.equal(sample.views["recoloured"], sample.views["plain"])
        means = torch.nn.functional.avg_pool2d(alone.float(), 2)
        assert (means - sample.views["small"][0].float()).abs().mean() < 6


def test_colours_change_images_alone() -> None:
    view = MultiView(main=MAIN, others={}, main_colour=COLOUR)
    sample, alone = make_views(view), make_views(replace(view, main_colour=None))
    assert not torch.equal(sample.maps["rgb"], alone.maps["rgb"])
    assert_equal_tensors(*({name: scene.maps[name] for name in ("semantic", "instance")} for scene in (sample, alone)))


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_shifted_views_are_parts_of_the_crop_whose_corner_is_the_main_view(flip: float) -> None:
    """The crop is that of the image at its own size, so that pixels are copied and contain their position."""
    image = position_image(60, 80)
    main = RandomView(size=(53, 73), scale=(1.0, 1.0), ratio=(80 / 60, 80 / 60), flip=flip)
    view = MultiView(main=main, others={"shifted": ViewOptions(crop="shifted", shift=7, count=200)})
    sample = view(Scene("key", {"rgb": image, "semantic": image[1].clone()}), np.random.default_rng(0))
    shown = image.flip(-1) if flip else image
    assert torch.equal(sample.maps["rgb"], shown[:, :53, :73])
    assert torch.equal(sample.maps["semantic"], shown[1, :53, :73])
    offsets = [(int(each[0, 0, 0]), abs(int(each[1, 0, 0]) - int(shown[1, 0, 0]))) for each in sample.views["shifted"]]
    for each, (down, across) in zip(sample.views["shifted"], offsets, strict=True):
        assert torch.equal(each, shown[:, down : down + 53, across : across + 73])
    assert {down for down, _ in offsets} == {across for _, across in offsets} == set(range(8))
    assert len(set(offsets)) > 50  # both are drawn, each of its own


def test_the_crop_of_shifted_views_is_that_of_the_random_view() -> None:
    main = RandomView(size=(25, 41), scale=(0.5, 1.0))
    larger = RandomView(size=(32, 48), scale=(0.5, 1.0))
    sample = make_views(MultiView(main=main, others={"shifted": ViewOptions(crop="shifted", shift=7)}))
    crop = larger(SCENES[0], np.random.default_rng(0))
    for name, pixels in crop.maps.items():
        if name != "instance":  # numbered by their sizes in the view
            assert torch.equal(sample.maps[name], pixels[..., :25, :41])


def test_own_crops_have_their_own_scale_and_the_flips_and_ratios_of_the_main_view() -> None:
    """Column and row of a crop's pixels show how large it is, and whether it is flipped."""
    scene = Scene("key", {"rgb": position_image(80, 80)})
    options = ViewOptions(size=(20, 20), scale=(0.04, 0.09), count=60)
    main = RandomView(size=(40, 40), scale=(1.0, 1.0), ratio=(1.0, 1.0))
    view = MultiView(main=main, others={"local": options})
    crops = view(scene, np.random.default_rng(0)).views["local"].float()
    heights = crops[:, 0, -1, 0] - crops[:, 0, 0, 0] + 1
    widths = crops[:, 1, 0, -1] - crops[:, 1, 0, 0]
    assert heights.min() > 0.8 * 0.2 * 80
    assert heights.max() < 1.2 * 0.3 * 80
    assert torch.allclose(widths.abs() + 1, heights, atol=2)
    assert 0.3 < (widths < 0).float().mean() < 0.7
    crops = replace(view, own_crops=replace(main, flip=0.0))(scene, np.random.default_rng(0)).views["local"].float()
    assert (crops[:, 1, 0, -1] > crops[:, 1, 0, 0]).all()


def test_own_crops_are_of_the_image_and_not_of_the_main_view() -> None:
    image = position_image(60, 60)
    main = RandomView(size=(60, 60), scale=(0.1, 0.1), ratio=(1.0, 1.0), flip=0.0)
    view = MultiView(main=main, others={"complete": ViewOptions(scale=(1.0, 1.0))})
    assert torch.equal(view(Scene("key", {"rgb": image}), np.random.default_rng(0)).views["complete"][0], image)


def test_own_crops_beside_a_central_view_need_their_ranges() -> None:
    main = CentralView(size=(32, 48))
    with pytest.raises(ValueError, match=r"^own_crops: is required for 'second', since the main view is not random$"):
        MultiView(main=main, others=OTHERS)
    MultiView(main=main, others={"same": OTHERS["same"]})


def test_a_scene_without_an_image_is_reported() -> None:
    scene = Scene("a", {"semantic": torch.zeros(8, 8, dtype=torch.uint8)})
    view = MultiView(main=MAIN, others=OTHERS)
    assert_user_error(
        lambda: view(scene, np.random.default_rng(0)),
        "a: views need an image, but the data has none. Use data with images",
    )


def test_other_channels_have_views_but_no_changes_of_colour() -> None:
    scene, rng = Scene("a", {"rgb": torch.zeros(5, 64, 64, dtype=torch.uint8)}), np.random.default_rng(0)
    plain = {"local": OTHERS["local"]}
    assert MultiView(main=MAIN, others=plain)(scene, rng).views["local"].shape == (3, 5, 16, 16)
    problem = "a: the colours of {} cannot be changed (expected 3 channels, got 5). Set its colour to null"
    view = MultiView(main=MAIN, others={"second": OTHERS["second"]})
    assert_user_error(lambda: view(scene, rng), problem.format("second"))
    view = MultiView(main=MAIN, others=plain, main_colour=COLOUR)
    assert_user_error(lambda: view(scene, rng), problem.format("the main view"))


@pytest.mark.unchecked
def test_batches_of_workers_have_the_views() -> None:
    view = MultiView(main=MAIN, others=OTHERS, main_colour=COLOUR)
    batches = []
    for workers in (0, 1):
        sampler = Sampler(num_samples=len(SCENES), batch_size=3, seed=0)
        loader = SceneLoader(
            scenes=SCENES, transform=pickle.loads(pickle.dumps(view)), sampler=sampler, workers=workers
        )
        stream = loader.stream_batches(1)
        batches.append(next(stream))
        stream.close()
    here, there = batches
    assert isinstance(there, SceneBatch)
    assert there.views["local"].shape == (3, 3, 3, 16, 16)
    assert there.views["local"].is_shared()
    assert_equal_tensors(here.views, there.views)
    assert_equal_tensors(here.maps, there.maps)
