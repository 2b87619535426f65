"""Classifiers and untrained fine-tuning runs with random weights, so that no two outputs are equal by accident."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from c2fmae.core.checkpoint import Checkpoint, save_checkpoint
from c2fmae.core.labels import LabelInfo
from c2fmae.core.specs import Pooling
from c2fmae.models.backbones import Backbone
from c2fmae.models.classifiers import Classifier, classifier_from_backbone
from tests.exports.noise_sources import make_noise_backbone
from tests.methods.tiny_methods import perturb_parameters

LABELS = (LabelInfo(name="cat", wnid="n02121808"), None, LabelInfo(name="dog, hound"), LabelInfo(name="sea"))


def make_noise_classifier(
    backbone: Backbone | None = None,
    pool: Pooling = "mean",
    *,
    labels: Sequence[LabelInfo | None] = LABELS,
    granularities: Sequence[str] = ("rgb",),
    crop: float = 0.9,
    seed: int = 0,
) -> Classifier:
    """A classifier with random weights, in head and norms too."""
    classifier = classifier_from_backbone(
        backbone or make_noise_backbone(),
        labels,
        pool=pool,
        granularities=granularities,
        drop_path=0.1,
        crop=crop,
        generator=torch.Generator().manual_seed(0),
    )
    perturb_parameters(classifier, seed)
    return classifier


def write_finetuned_run(run_dir: Path, classifier: Classifier, **config: Any) -> Path:
    """A run directory of fine-tuning: the last checkpoint of step 20, and the best of step 10."""
    metadata = {
        "kind": "finetuning",
        "backbone": classifier.spec.backbone.model_dump(mode="json"),
        "classifier": classifier.spec.model_dump(mode="json", exclude={"backbone"}),
        "config": {"name": "tuned", **config},
        "samples": 640,
        "labels": [label.name if label else "" for label in classifier.spec.labels],
    }
    tensors = {f"model/{name}": each for name, each in classifier.state_dict().items()}
    tensors |= {f"ema/{name}": each + 0.125 for name, each in classifier.named_parameters()}
    save_checkpoint(run_dir / "checkpoints", Checkpoint(20, tensors, metadata))
    tensors["model/head.bias"] = tensors["model/head.bias"] + 1
    save_checkpoint(run_dir / "best", Checkpoint(10, tensors, {**metadata, "score": 0.75}))
    (run_dir / "config.yaml").write_text(yaml.safe_dump(metadata["config"]), encoding="utf-8")
    return run_dir
