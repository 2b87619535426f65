"""Backbones that take milliseconds, and scenes whose features are known."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from c2fmae.core.scene import Scene
from c2fmae.core.specs import BackboneSpec, EncoderConfig
from c2fmae.data import DatasetInfo
from c2fmae.eval.evaluation import ModelUnderTest
from c2fmae.models.backbones import Backbone, create_untrained_backbone
from tests.methods.tiny_methods import perturb_parameters

SPEC = BackboneSpec(encoder=EncoderConfig(name="test_vit", patch_size=8, depth=3), image_size=(16, 16))


def tiny_backbone(spec: BackboneSpec = SPEC, seed: int = 0) -> Backbone:
    """A ViT of three blocks with random weights, whose norms matter too."""
    backbone = create_untrained_backbone(spec, seed)
    perturb_parameters(backbone, seed)
    return backbone.eval()


def make_tiny_model_under_test(backbone: Backbone, cache: Path, name: str = "tiny") -> ModelUnderTest:
    """What is evaluated, alone."""
    return ModelUnderTest.in_memory(name, cache, backbone=backbone)


class InMemoryScenes:
    """Scenes from tensors, with the bytes of their photos."""

    def __init__(self, scenes: Sequence[Scene], *, stride: int = 1) -> None:
        self._scenes = list(scenes)
        self.info = DatasetInfo(label_stride=stride)
        self.keys = [scene.key for scene in scenes]
        self.num_reads = 0

    def __len__(self) -> int:
        return len(self._scenes)

    def __getitem__(self, index: int) -> Scene:
        self.num_reads += 1
        return self._scenes[index]

    def read_image_bytes(self, index: int) -> bytes | None:
        """The bytes of a photo, as if stored."""
        return self._scenes[index].maps["rgb"].numpy().tobytes()


def draw_coloured_scenes(count: int, *, labels: int = 3, size: int = 16, seed: int = 0, noise: int = 40) -> list[Scene]:
    """Photos of one colour and noise; the label says which colour, and the semantic map too."""
    generator = torch.Generator().manual_seed(seed)
    colours = torch.randint(256, (labels, 3), generator=torch.Generator().manual_seed(99))
    scenes = []
    for index in range(count):
        label = index % labels
        photo = colours[label].view(3, 1, 1) + torch.randint(-noise, noise + 1, (3, size, size), generator=generator)
        maps: dict[str, Tensor] = {
            "rgb": photo.clamp(0, 255).to(torch.uint8),
            "semantic": torch.full((size, size), label, dtype=torch.uint8),
        }
        scenes.append(Scene(f"{seed}-{index:04d}", maps, label))
    return scenes


def write_scenes(root: Path, scenes: Sequence[Scene]) -> str:
    """Write scenes as a folder tree, by label, and return where."""
    for scene in scenes:
        for name, each in scene.maps.items():
            place = root / name / (f"class-{scene.label}" if scene.label is not None else "")
            place.mkdir(parents=True, exist_ok=True)
            array = each.permute(1, 2, 0).numpy() if each.ndim == 3 else each.numpy()
            Image.fromarray(array).save(place / f"{scene.key}.png")
    return str(root)


def write_dataset_json(root: str, names: Sequence[str]) -> str:
    """Say what the ids of a folder's semantic maps mean, and return the folder."""
    classes = [{"name": name, "is_thing": False} for name in names]
    granularities = ["rgb", "semantic"]
    info = {"format": 1, "name": "coloured", "granularities": granularities, "classes": classes}
    Path(root, "dataset.json").write_text(json.dumps(info), encoding="utf-8")
    return root
