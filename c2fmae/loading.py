"""Loading of pre-training runs: config, method with its weights, step and class names."""

from dataclasses import dataclass
from pathlib import Path

from c2fmae.config.pretrain import PretrainConfig
from c2fmae.core.checkpoint import check_model_tensors
from c2fmae.core.config import Config
from c2fmae.core.decoder_options import BlockOptions
from c2fmae.core.errors import UserError
from c2fmae.core.run_dir import find_checkpoint
from c2fmae.core.run_info import RunInfo, is_run_or_checkpoint
from c2fmae.data import Scenes
from c2fmae.methods import MaskedAutoencoding, build_method
from c2fmae.models.backbones.model_size import check_model_size

_FINE_TUNED_MODELS = {"finetuning": "fine-tuned classifier", "segmentation": "segmenter", "detection": "detector"}


@dataclass(frozen=True)
class LoadedRun:
    """A pre-training run at one of its checkpoints."""

    config: PretrainConfig
    method: MaskedAutoencoding
    step: int
    class_names: tuple[str, ...]


def load_run(path: Path, *, step: int | None = None, use_ema: bool = False) -> LoadedRun:
    """Load a run directory at its newest intact checkpoint or at a step, or a single checkpoint.

    With `use_ema`, the parameters are the exponential moving averages of `training.ema`.
    """
    if path.is_file():
        raise UserError(
            f"{path}: is a file of encoder weights, without the decoder that reconstruction needs. "
            "Use the run directory it was exported from"
        )
    if not is_run_or_checkpoint(path):
        problem = "is not a run directory or a checkpoint" if path.exists() else "does not exist"
        raise UserError(f"{path}: {problem}. Use a run directory with its checkpoints")
    checkpoint = find_checkpoint(path, step)
    info = RunInfo.from_checkpoint(checkpoint, path)
    if info.kind != "pretraining":
        raise UserError(
            f"{path}: is a {_FINE_TUNED_MODELS[info.kind]} without a decoder. Use the run it was fine-tuned from"
        )
    config = PretrainConfig.from_dict(
        {key: value for key, value in info.config.items() if key in PretrainConfig.model_fields}, source=str(path)
    )
    tensors = checkpoint.tensors_of("model")
    options: Config = config.masked_method.decoder.options  # those of a plug-in may have no depth
    check_model_size(
        str(path),
        config.method.backbone_spec(),
        tensors,
        lambda _: build_method(config.masked_method).model,
        decoder_depth=options.depth if isinstance(options, BlockOptions) else 0,
    )
    method = build_method(config.masked_method, seed=config.training.seed)
    ema_tensors = checkpoint.tensors_of("ema") if use_ema else {}
    if use_ema and not ema_tensors:
        raise UserError(f"{path}: has no averaged weights, since it was trained without training.ema. Leave out --ema")
    tensors |= ema_tensors
    try:
        check_model_tensors(tensors, method.model.state_dict())
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    method.model.load_state_dict(tensors)
    return LoadedRun(config, method, checkpoint.step, info.backbone.class_names)


def open_run_scenes(config: PretrainConfig) -> Scenes:
    """Return the held-out scenes of a run, or its training scenes if it has none."""
    names = config.method.required_maps
    return config.data.open_held_out(names) or config.data.open_training(names)
