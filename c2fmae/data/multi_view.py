"""Several views of one scene: the main view with its maps, and further views of the image."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from c2fmae.core.crop_box import CropBox
from c2fmae.core.errors import UserError
from c2fmae.core.scene import Scene
from c2fmae.core.seeding import derive_seed
from c2fmae.core.view_options import ColourOptions, ViewOptions
from c2fmae.data.colour import change_colours, draw_colour_change
from c2fmae.data.geometry import resized_crop, resized_crop_image, scene_size
from c2fmae.data.transforms import CentralView, RandomView


class _Crop(NamedTuple):
    """A crop of a scene, not yet made."""

    scene: Scene
    box: CropBox
    is_flipped: bool


@dataclass(frozen=True, kw_only=True)
class MultiView:
    """The transform for methods that compare views of an image.

    Without shifted views, the main view is that of `main`, to the bit. Each view depends on its name, its number and
    the generator alone: with another view added, or more views of a name, it is the same.
    """

    main: RandomView | CentralView
    others: Mapping[str, ViewOptions]
    """The further views, by name."""
    main_colour: ColourOptions | None = None
    """Changes of the main view's colours."""
    own_crops: RandomView | None = None
    """Scale, aspect ratio and flips of views with crops of their own. By default, those of a random main view."""

    def __post_init__(self) -> None:
        if self.own_crops is None and not isinstance(self.main, RandomView):
            own = [name for name, options in self.others.items() if options.crop == "own"]
            if own:
                raise ValueError(f"own_crops: is required for {own[0]!r}, since the main view is not random")

    def __call__(self, scene: Scene, rng: np.random.Generator) -> Scene:
        """Return the main view of a scene, with its further views."""
        self._check_scene(scene)
        main = self._draw_main_crop(scene, rng)
        sample = self.main.crop_scene(*main)
        image = sample.maps["rgb"]
        seed = int(rng.integers(1 << 63))
        views = {}
        for name, options in self.others.items():
            images = []
            for number in range(options.count):
                view_rng = np.random.default_rng(derive_seed(seed, f"view {name}", number))
                images.append(self._make_view(options, scene, main, image, view_rng))
            views[name] = torch.stack(images)
        colour_rng = np.random.default_rng(derive_seed(seed, "main view"))
        image = _change_randomly(image, self.main_colour, colour_rng)
        return replace(sample, maps={**sample.maps, "rgb": image}, views=views)

    def _check_scene(self, scene: Scene) -> None:
        if "rgb" not in scene.maps:
            raise UserError(f"{scene.key}: views need an image, but the data has none. Use data with images")
        channels = len(scene.maps["rgb"])
        colours = {"the main view": self.main_colour, **{name: each.colour for name, each in self.others.items()}}
        for name, colour in colours.items():
            if colour is not None and channels != 3:
                raise UserError(
                    f"{scene.key}: the colours of {name} cannot be changed (expected 3 channels, got {channels})."
                    " Set its colour to null"
                )

    def _draw_main_crop(self, scene: Scene, rng: np.random.Generator) -> _Crop:
        crop = _Crop(scene, *self.main.draw_crop(scene_size(scene), rng))
        shift = max((options.shift for options in self.others.values()), default=0)
        if not shift:
            return crop
        height, width = self.main.size
        larger = resized_crop(scene, crop.box, (height + shift, width + shift), is_flipped=crop.is_flipped)
        return _Crop(larger, CropBox(0, 0, height, width), is_flipped=False)

    def _make_view(
        self,
        options: ViewOptions,
        scene: Scene,
        main: _Crop,
        main_image: UInt8[Tensor, "channels height width"],
        rng: np.random.Generator,
    ) -> UInt8[Tensor, "channels rows columns"]:
        size = options.size or self.main.size
        if options.crop == "own":
            crop = self._draw_own_crop(scene, options, rng)
        elif options.crop == "shifted":
            down, across = rng.integers(0, options.shift, 2, endpoint=True).tolist()
            crop = _Crop(main.scene, CropBox(down, across, *size), is_flipped=False)
        else:
            crop = main
        if crop is main and size == self.main.size:
            image = main_image
        else:
            image = resized_crop_image(crop.scene.maps["rgb"], crop.box, size)
            image = image.flip(-1) if crop.is_flipped else image
        return _change_randomly(image, options.colour, rng)

    def _draw_own_crop(self, scene: Scene, options: ViewOptions, rng: np.random.Generator) -> _Crop:
        crops = self.own_crops or self.main
        assert isinstance(crops, RandomView)
        crops = replace(crops, scale=options.scale or crops.scale)
        return _Crop(scene, *crops.draw_crop(scene_size(scene), rng))


def _change_randomly(
    image: UInt8[Tensor, "channels height width"], options: ColourOptions | None, rng: np.random.Generator
) -> UInt8[Tensor, "channels height width"]:
    return image if options is None else change_colours(image, draw_colour_change(options, rng))
