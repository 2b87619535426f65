"""Tiny classifiers, and data sets in which each label has a colour."""

from collections.abc import Sequence
from pathlib import Path

import torch

from c2fmae.core.checkpoint import Checkpoint, save_checkpoint
from c2fmae.core.labels import LabelInfo
from c2fmae.core.scene import SceneBatch
from c2fmae.core.specs import BackboneSpec, EncoderConfig
from c2fmae.eval.classification.config import FinetuneConfig
from c2fmae.models.classifiers import Classifier, classifier_from_backbone
from tests.eval.tiny_backbones import draw_coloured_scenes, tiny_backbone, write_dataset_json, write_scenes

ENCODER = EncoderConfig(name="test_vit", patch_size=8, depth=3)
RGB_SPEC = BackboneSpec(encoder=ENCODER, image_size=(16, 16))
RGB_SEMANTIC_SPEC = BackboneSpec(
    encoder=ENCODER, image_size=(16, 16), channels={"semantic": 3, "rgb": 3}, class_names=("one", "two", "three")
)
LABELS = tuple(LabelInfo(name=f"class-{index}") for index in range(3))

QUICK_OVERRIDES = (
    "training.epochs=null",
    "training.steps=6",
    "training.warmup_epochs=null",
    "training.warmup_steps=1",
    "training.batch_size=8",
    "training.base_lr=null",
    "training.lr=1e-3",
    "training.layer_decay=0.75",
    "training.precision=fp32",
    "data.workers=0",
    "data.crop=1",
    "drop_path=0",
    "watching.held_out_every=2",
)


def make_tiny_classifier(spec: BackboneSpec = RGB_SPEC, labels: Sequence[LabelInfo] = LABELS) -> Classifier:
    """Return a classifier on a ViT with random weights, with large weights in the head."""
    classifier = classifier_from_backbone(
        tiny_backbone(spec),
        labels,
        pool="mean",
        granularities=tuple(spec.channels),
        drop_path=0.0,
        crop=1.0,
        generator=torch.Generator().manual_seed(0),
    )
    with torch.no_grad():
        classifier.head.weight.normal_(0, 0.5, generator=torch.Generator().manual_seed(1))
    return classifier


def make_coloured_batch(count: int, *, seed: int = 0) -> SceneBatch:
    """Return a batch of coloured images with their maps at a stride of 4."""
    scenes = draw_coloured_scenes(count, seed=seed)
    maps = {name: torch.stack([scene.maps[name] for scene in scenes]) for name in ("rgb", "semantic")}
    maps["semantic"] = maps["semantic"][:, ::4, ::4]
    return SceneBatch(tuple(scene.key for scene in scenes), maps, tuple(scene.label for scene in scenes))


def write_train_test_sets(root: Path, *, train: int = 24, test: int = 18) -> Path:
    """Write a training and a test set of coloured images with maps."""
    for split, count, seed in (("train", train, 0), ("test", test, 1)):
        write_dataset_json(write_scenes(root / split, draw_coloured_scenes(count, seed=seed)), ("one", "two", "three"))
    return root


def write_pretrained_checkpoint(root: Path, spec: BackboneSpec = RGB_SPEC) -> Path:
    """Write a pre-training checkpoint of random weights."""
    backbone = tiny_backbone(spec)
    tensors = {
        f"model/{name}": tensor for name, tensor in backbone.state_dict().items() if not name.startswith("fc_norm")
    }
    saved_spec = spec.model_copy(update={"encoder": spec.encoder.model_copy(update={"has_norm": True})})
    metadata = {"kind": "pretraining", "backbone": saved_spec.model_dump(mode="json"), "config": {}}
    return save_checkpoint(root, Checkpoint(1, tensors, metadata))


def make_quick_config(source: Path, data: Path, *settings: str) -> FinetuneConfig:
    """Return the config of a fine-tuning run of six steps, with these overrides."""
    overrides = [f"data.train={data / 'train'}", f"data.test={data / 'test'}", *QUICK_OVERRIDES, *settings]
    return FinetuneConfig.from_dict({"init": str(source)}, overrides)
