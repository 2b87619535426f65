"""The encoder of a run, or of one of its checkpoints; of a fine-tuned one the head too."""

from collections import Counter
from pathlib import Path

from c2fmae.core.errors import UserError
from c2fmae.core.run_dir import find_checkpoint
from c2fmae.core.run_info import RunInfo
from c2fmae.models.backbones.assemble import SourceContents

_BACKBONE_MODULES = ("embeddings", "encoder", "fc_norm", "head")


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
    info = RunInfo.from_checkpoint(checkpoint, path)
    return SourceContents(
        source=str(path),
        spec=info.backbone,
        tensors=backbone_tensors,
        unused=unused,
        notes=notes,
        classifier_info=info.metadata.get("classifier", {}),
    )
