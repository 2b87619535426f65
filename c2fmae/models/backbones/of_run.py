"""The encoder of a run, or of one of its checkpoints."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from c2fmae.core.errors import UserError
from c2fmae.core.run_folder import find_checkpoint
from c2fmae.core.scene import GRANULARITIES
from c2fmae.models.backbones.assemble import Found
from c2fmae.models.backbones.spec import BackboneSpec


def read_run(path: Path, *, step: int | None = None, average: bool = False) -> Found:
    """Return what a run's newest whole checkpoint, or that of a step, holds of the encoder."""
    checkpoint = find_checkpoint(path, step)
    tensors = checkpoint.part("model")
    notes = [f"step {checkpoint.step:,}"]
    if average:
        averaged = checkpoint.part("ema")
        if not averaged:
            raise UserError(f"{path}: holds no average of weights: it was trained without training.ema")
        tensors |= averaged
        notes = [f"{notes[0]}, the average of the weights"]
    parts = {name: name.split(".")[0] for name in tensors}
    ours = {name: each for name, each in tensors.items() if parts[name] in ("embeddings", "encoder")}
    left = Counter(part for name, part in parts.items() if name not in ours)
    return Found(source=str(path), spec=_spec_of(checkpoint.facts, path), tensors=ours, left=left, notes=notes)


def _spec_of(facts: Mapping[str, Any], path: Path) -> BackboneSpec:
    try:
        method, normalisation = facts["config"]["method"], facts["normalisation"]
        channels = {
            name: method["channels"].get(name, GRANULARITIES.get(name).channels) for name in method["granularities"]
        }
        values = {"encoder": method["encoder"], "image_size": method["image_size"]}
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path}: does not say what its model is: {error} is missing. Take a run's checkpoint"
        ) from error
    return BackboneSpec.read(
        {**values, **normalisation, "channels": channels, "class_names": facts.get("classes", ())}, source=str(path)
    )
