"""Reader of the encoder of a run or checkpoint, and of the head if it is fine-tuned."""

from pathlib import Path

from c2fmae.core.errors import UserError
from c2fmae.core.run_dir import find_checkpoint
from c2fmae.core.run_info import RunInfo
from c2fmae.models.backbones.assemble import SourceContents, split_c2fmae_tensors
from c2fmae.models.backbones.backbone import wrap_vit
from c2fmae.models.backbones.model_size import check_model_size


def read_run(path: Path, *, step: int | None = None, use_ema: bool = False) -> SourceContents:
    """Return the encoder of a run's newest intact checkpoint, or of the checkpoint of a step."""
    checkpoint = find_checkpoint(path, step)
    tensors = checkpoint.tensors_of("model")
    notes = [f"step {checkpoint.step:,}"]
    if use_ema:
        averaged = checkpoint.tensors_of("ema")
        if not averaged:
            raise UserError(f"{path}: has no averaged weights, since it was trained without training.ema. Omit use_ema")
        tensors |= averaged
        notes = [f"{notes[0]}, averaged weights"]
    tensors = {name.removeprefix("backbone."): tensor for name, tensor in tensors.items()}  # the prefix in a classifier
    backbone_tensors, unused = split_c2fmae_tensors(tensors)
    info = RunInfo.from_checkpoint(checkpoint, path)
    check_model_size(str(path), info.backbone, backbone_tensors, lambda vit: wrap_vit(vit, info.backbone))
    return SourceContents(
        source=str(path),
        spec=info.backbone,
        tensors=backbone_tensors,
        unused=unused,
        notes=notes,
        classifier_info=info.metadata.get("classifier", {}),
        is_own_checkpoint=True,
    )
