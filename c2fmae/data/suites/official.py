"""The suites of ImageNet and its shifted versions, and the suite of custom sets."""

from functools import cache
from importlib.resources import files

from c2fmae.core.labels import LabelInfo
from c2fmae.data.class_dirs import dir_name_to_label
from c2fmae.data.suites.corruption_grid import CorruptionGrid, GridOrLabelledImages
from c2fmae.data.suites.labelled import LabelledImages
from c2fmae.data.suites.real_labels import RealLabels
from c2fmae.data.suites.suite import CUSTOM, SUITES, Suite
from c2fmae.data.suites.watermarked import WatermarkedImages


@cache
def imagenet_wnids() -> tuple[str, ...]:
    """Return the WordNet ids of ImageNet's 1000 classes, in the order of the logits."""
    return _read_timm_synsets("imagenet")


@cache
def imagenet_a_wnids() -> tuple[str, ...]:
    """Return the WordNet ids of the 200 classes of ImageNet-A."""
    return _read_timm_synsets("imagenet_a")


@cache
def imagenet_r_wnids() -> tuple[str, ...]:
    """Return the WordNet ids of the 200 classes of ImageNet-R; 86 of them are classes of ImageNet-A too."""
    return _read_timm_synsets("imagenet_r")


def _numbered_dir_to_label(name: str) -> LabelInfo:
    """Return the class of a directory of ImageNetV2, which is named by the number of the logit."""
    wnids = imagenet_wnids()
    is_number = name.isascii() and name.isdecimal() and int(name) < len(wnids)
    return LabelInfo(name=name, wnid=wnids[int(name)]) if is_number else dir_name_to_label(name)


def _read_timm_synsets(name: str) -> tuple[str, ...]:
    """Read one of timm's lists; its `ImageNetInfo` has none for the subsets."""
    return tuple((files("timm.data") / "_info" / f"{name}_synsets.txt").read_text(encoding="utf-8").split())


SUITES.register("imagenet-val", "ImageNet's validation set: 50,000 images of 1,000 classes.")(
    Suite(
        name="imagenet-val",
        title="the ImageNet validation set",
        layout=LabelledImages(),
        wnids=imagenet_wnids,
        num_images=50_000,
        images_per_class=50,
        aliases=("val",),
        class_dirs_hint="The official validation archive has none: move each image into a directory named by the"
        " WordNet id of its class, which the devkit's ground truth lists",
    )
)
SUITES.register("imagenet-a", "ImageNet-A: 7,500 natural images that a ResNet-50 misclassifies, 200 classes.")(
    Suite(
        name="imagenet-a",
        title="ImageNet-A",
        layout=LabelledImages(),
        wnids=imagenet_a_wnids,
        num_images=7_500,
        is_restricted=True,
        aliases=("a",),
    )
)
SUITES.register("imagenet-r", "ImageNet-R: 30,000 renditions (art, cartoons, toys, …) of 200 classes.")(
    Suite(
        name="imagenet-r",
        title="ImageNet-R",
        layout=LabelledImages(),
        wnids=imagenet_r_wnids,
        num_images=30_000,
        is_restricted=True,
        aliases=("r",),
    )
)
SUITES.register("sketch", "ImageNet-Sketch: 50,889 sketches of 1,000 classes.")(
    Suite(
        name="sketch",
        title="ImageNet-Sketch",
        layout=LabelledImages(),
        wnids=imagenet_wnids,
        num_images=50_889,
        aliases=("imagenet-sketch",),
    )
)
SUITES.register("imagenet-v2", "ImageNetV2: 10,000 new images of 1,000 classes, collected like the validation set.")(
    Suite(
        name="imagenet-v2",
        title="ImageNetV2",
        layout=LabelledImages(),
        wnids=imagenet_wnids,
        num_images=10_000,
        images_per_class=10,
        name_to_label=_numbered_dir_to_label,
        aliases=("v2",),
    )
)
SUITES.register("imagenet-real", "ImageNet-ReaL: the validation set with several correct classes for each image.")(
    Suite(
        name="imagenet-real",
        title="ImageNet-ReaL",
        layout=RealLabels(),
        wnids=imagenet_wnids,
        num_images=50_000,
        aliases=("real",),
    )
)
SUITES.register("imagenet-w", "ImageNet-W: the validation set with a watermark that is drawn when images are read.")(
    Suite(
        name="imagenet-w",
        title="ImageNet-W",
        layout=WatermarkedImages(),
        wnids=imagenet_wnids,
        num_images=50_000,
        images_per_class=50,
        aliases=("w",),
    )
)
SUITES.register("imagenet-c", "ImageNet-C: the validation set under 15 (or 19) corruptions at 5 severities.")(
    Suite(
        name="imagenet-c",
        title="ImageNet-C",
        layout=CorruptionGrid(),
        wnids=imagenet_wnids,
        num_images=50_000,
        images_per_class=50,
        image_size=(224, 224),
        aliases=("c",),
    )
)
SUITES.register(CUSTOM, "A set of your own: class directories, labelled shards, or one made by `data corrupt`.")(
    Suite(name=CUSTOM, title="a custom set", layout=GridOrLabelledImages(), is_restricted=True)
)
