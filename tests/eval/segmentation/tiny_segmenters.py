"""Tiny segmenters with random weights, and scenes with a semantic map of blobs in the colours of their classes."""

from collections.abc import Sequence

import torch
from torch import Tensor

from c2fmae.core.labels import ClassInfo
from c2fmae.core.scene import Scene
from c2fmae.core.specs import BackboneSpec, EncoderConfig, HeadSpec
from c2fmae.data.geometry import subsample_ids
from c2fmae.models.backbones import create_untrained_backbone
from c2fmae.models.segmenters import Segmenter, segmenter_from_backbone
from tests.eval.tiny_backbones import InMemoryScenes
from tests.methods.tiny_methods import perturb_parameters

CLASSES = tuple(ClassInfo(name=name) for name in ("sky", "sea", "tree", "cat"))
CROP = (32, 32)
_SPEC = BackboneSpec(encoder=EncoderConfig(name="test_vit", patch_size=8, depth=1), image_size=CROP)


def tiny_segmenter(classes: Sequence[ClassInfo] = CLASSES, seed: int = 0) -> Segmenter:
    """Return a linear head on one block, with random weights, in evaluation mode."""
    segmenter = segmenter_from_backbone(
        create_untrained_backbone(_SPEC, seed),
        classes,
        head=HeadSpec(name="linear"),
        depths=(1,),
        normed=False,
        norm="layer",
        relative="none",
        drop_path=0.0,
        image_size=CROP,
        generator=torch.Generator().manual_seed(seed),
    )
    perturb_parameters(segmenter, seed)
    return segmenter.eval()


def draw_image(height: int, width: int, seed: int = 0) -> Tensor:
    """Return an image of smooth blobs."""
    noise = torch.rand(1, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.interpolate(noise, (height, width), mode="bicubic")[0]
    return (255 * smooth).clamp(0, 255).to(torch.uint8)


def draw_scene(height: int, width: int, seed: int = 0, *, label_stride: int = 1) -> Scene:
    """Return an image with a semantic map of four classes, a corner of which is unlabelled."""
    image = draw_image(height, width, seed)
    ids = (image[:2].float() > 127).to(torch.uint8)
    semantic = 2 * ids[0] + ids[1]
    semantic[: height // 4, : width // 4] = 255
    semantic = subsample_ids(semantic, label_stride) if label_stride > 1 else semantic
    return Scene(f"folder/{seed:03d}", {"rgb": image, "semantic": semantic}, label_stride=label_stride)


class MapScenes(InMemoryScenes):
    """Scenes in memory with the classes of `CLASSES`."""

    def __init__(self, scenes: Sequence[Scene]) -> None:
        super().__init__(scenes, stride=scenes[0].label_stride)
        self.info = self.info.model_copy(update={"classes": CLASSES, "name": "blobs"})


def draw_map_scenes(count: int) -> MapScenes:
    """Return scenes of several sizes."""
    sizes = [(24, 30), (32, 32), (40, 33), (17, 50)]
    return MapScenes([draw_scene(*sizes[seed % 4], seed) for seed in range(count)])
