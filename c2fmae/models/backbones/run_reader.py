"""Reader of the encoder of a run or checkpoint, and of the head if it is fine-tuned."""

from pathlib import Path

from torch import Tensor

from c2fmae.core.checkpoint import Checkpoint
from c2fmae.core.detector_spec import DetectorSpec
from c2fmae.core.errors import UserError
from c2fmae.core.run_dir import find_checkpoint
from c2fmae.core.run_info import RunInfo
from c2fmae.core.specs import SegmenterSpec
from c2fmae.models.backbones.assemble import SourceContents, split_c2fmae_tensors
from c2fmae.models.backbones.backbone import wrap_vit
from c2fmae.models.backbones.model_size import check_model_size


def read_run(path: Path, *, step: int | None = None, use_ema: bool = False) -> SourceContents:
    """Return the encoder of a run's newest intact checkpoint, or of the checkpoint of a step."""
    checkpoint = find_checkpoint(path, step)
    tensors, note = read_weights(checkpoint, path, use_ema=use_ema)
    info = RunInfo.from_checkpoint(checkpoint, path)
    for model_name, spec in (("segmenter", info.segmenter), ("detector", info.detector)):
        if spec is not None:
            _check_is_plain(path, model_name, spec)
            tensors = {name: tensor for name, tensor in tensors.items() if name.startswith("backbone.")}
            note = f"the backbone of a {model_name}, {note}"
    # The prefix is that in classifiers, segmenters and detectors.
    tensors = {name.removeprefix("backbone."): tensor for name, tensor in tensors.items()}
    backbone_tensors, unused = split_c2fmae_tensors(tensors)
    check_model_size(str(path), info.backbone, backbone_tensors, lambda vit: wrap_vit(vit, info.backbone))
    return SourceContents(
        source=str(path),
        spec=info.backbone,
        tensors=backbone_tensors,
        unused=unused,
        notes=[note],
        classifier_info=info.metadata.get("classifier", {}),
        is_own_checkpoint=True,
    )


def _check_is_plain(path: Path, model_name: str, spec: SegmenterSpec | DetectorSpec) -> None:
    """Raise a `UserError` if the backbone of a segmenter or detector computes something else without it."""
    has_windows = isinstance(spec, DetectorSpec) and spec.windows is not None
    feature = "windows and without a class token" if has_windows else "relative positions"
    if has_windows or spec.relative != "none":
        raise UserError(
            f"{path}: its backbone was trained with {feature}, which only its {model_name} has (load_{model_name}). "
            "Use the backbone that it was trained from"
        )


def read_weights(checkpoint: Checkpoint, path: Path, *, use_ema: bool) -> tuple[dict[str, Tensor], str]:
    """Return the weights of a model in a checkpoint, or their averages, and a note on which they are."""
    tensors, note = checkpoint.tensors_of("model"), f"step {checkpoint.step:,}"
    if not use_ema:
        return tensors, note
    averaged = checkpoint.tensors_of("ema")
    if not averaged:
        raise UserError(f"{path}: has no averaged weights, since it was trained without training.ema. Leave out --ema")
    return tensors | averaged, f"{note}, averaged weights"
