"""Tiny backbones with random weights, and scenes with one colour for each label."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from c2fmae.core.scene import Scene
from c2fmae.core.specs import BackboneSpec, EncoderConfig
from c2fmae.data import DatasetInfo
from c2fmae.eval.evaluation import Evaluation, ModelUnderTest
from c2fmae.eval.metrics import Metric
from c2fmae.models.backbones import Backbone, create_untrained_backbone
from tests.methods.tiny_methods import perturb_parameters

SPEC = BackboneSpec(encoder=EncoderConfig(name="test_vit", patch_size=8, depth=3), image_size=(16, 16))


def tiny_backbone(spec: BackboneSpec = SPEC, seed: int = 0) -> Backbone:
    """Return a ViT of three blocks in which all parameters are random, including those of norms."""
    backbone = create_untrained_backbone(spec, seed)
    perturb_parameters(backbone, seed)
    return backbone.eval()


def make_tiny_model_under_test(backbone: Backbone, cache: Path, name: str = "tiny") -> ModelUnderTest:
    """Return a backbone as a model under test."""
    return ModelUnderTest.in_memory(name, cache, backbone=backbone)


def compute_metrics(evaluation: Evaluation, model: ModelUnderTest) -> dict[str, Metric]:
    """Return the metrics of an evaluation by label."""
    return {metric.label: metric for metric in evaluation.run(model)}


class InMemoryScenes:
    """Scenes from tensors, which count how often they are read."""

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
        """Return the bytes of an image as if they were stored."""
        return self._scenes[index].maps["rgb"].numpy().tobytes()


def draw_coloured_scenes(count: int, *, labels: int = 3, size: int = 16, seed: int = 0, noise: int = 40) -> list[Scene]:
    """Return noisy images of one colour each, with a label and a semantic map for the colour."""
    generator = torch.Generator().manual_seed(seed)
    colours = torch.randint(256, (labels, 3), generator=torch.Generator().manual_seed(99))
    scenes = []
    for index in range(count):
        label = index % labels
        image = colours[label].view(3, 1, 1) + torch.randint(-noise, noise + 1, (3, size, size), generator=generator)
        maps: dict[str, Tensor] = {
            "rgb": image.clamp(0, 255).to(torch.uint8),
            "semantic": torch.full((size, size), label, dtype=torch.uint8),
        }
        scenes.append(Scene(f"{seed}-{index:04d}", maps, label))
    return scenes


def write_scenes(root: Path, scenes: Sequence[Scene]) -> str:
    """Write scenes as a folder tree by label, and return its path."""
    for scene in scenes:
        for name, values in scene.maps.items():
            class_dir = root / name / (f"class-{scene.label}" if scene.label is not None else "")
            class_dir.mkdir(parents=True, exist_ok=True)
            array = values.permute(1, 2, 0).numpy() if values.ndim == 3 else values.numpy()
            Image.fromarray(array).save(class_dir / f"{scene.key}.png")
    return str(root)


def write_dataset_json(root: str, names: Sequence[str]) -> str:
    """Write the names of a folder's semantic classes, and return the folder."""
    classes = [{"name": name, "is_thing": False} for name in names]
    granularities = ["rgb", "semantic"]
    info = {"format": 1, "name": "coloured", "granularities": granularities, "classes": classes}
    Path(root, "dataset.json").write_text(json.dumps(info), encoding="utf-8")
    return root
