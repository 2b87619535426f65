"""The encoder of a run, or of one of its checkpoints; of a fine-tuned one the head too."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from c2fmae.core.checkpoint import list_checkpoints
from c2fmae.core.errors import UserError
from c2fmae.core.granularity import GRANULARITIES
from c2fmae.core.run_dir import find_checkpoint
from c2fmae.core.specs import BackboneSpec
from c2fmae.models.backbones.assemble import SourceContents

_BACKBONE_MODULES = ("embeddings", "encoder", "fc_norm", "head")


def is_run_or_checkpoint(path: Path) -> bool:
    """Return whether a path is a run's folder, one of its folders of checkpoints, or a checkpoint."""
    return (path / "config.yaml").exists() or (path / "checkpoint.json").exists() or bool(list_checkpoints(path))


def read_run(path: Path, *, step: int | None = None, average: bool = False) -> SourceContents:
    """Return what a run's newest whole checkpoint, or that of a step, holds of the encoder."""
    checkpoint = find_checkpoint(path, step)
    tensors = checkpoint.tensors_of("model")
    notes = [f"step {checkpoint.step:,}"]
    if average:
        averaged = checkpoint.tensors_of("ema")
        if not averaged:
            raise UserError(f"{path}: holds no average of weights: it was trained without training.ema")
        tensors |= averaged
        notes = [f"{notes[0]}, the average of the weights"]
    tensors = {name.removeprefix("backbone."): each for name, each in tensors.items()}  # of a classifier's
    parts = {name: name.split(".")[0] for name in tensors}
    backbone_tensors = {name: each for name, each in tensors.items() if parts[name] in _BACKBONE_MODULES}
    unused = Counter(part for name, part in parts.items() if name not in backbone_tensors)
    spec, classifier_info = _read_spec(checkpoint.metadata, path)
    return SourceContents(
        source=str(path),
        spec=spec,
        tensors=backbone_tensors,
        unused=unused,
        notes=notes,
        classifier_info=classifier_info,
    )


def _read_spec(metadata: Mapping[str, Any], path: Path) -> tuple[BackboneSpec, Mapping[str, Any]]:
    """Return what the encoder is, and of a fine-tuned run what its classes are."""
    if classifier := metadata.get("classifier"):
        classifier_info = {word: each for word, each in classifier.items() if word != "backbone"}
        return BackboneSpec.from_dict(classifier["backbone"], source=str(path)), classifier_info
    try:
        method, normalisation = metadata["config"]["method"], metadata["normalisation"]
        channels = {
            name: method["channels"].get(name, GRANULARITIES.get(name).channels) for name in method["granularities"]
        }
        values = {"encoder": method["encoder"], "image_size": method["image_size"]}
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path}: does not say what its model is: {error} is missing. Take a run's checkpoint"
        ) from error
    values |= {**normalisation, "channels": channels, "class_names": metadata.get("classes", ())}
    return BackboneSpec.from_dict(values, source=str(path)), {}
