"""What a run or one of its checkpoints holds, for those who come after it."""

from dataclasses import dataclass
from pathlib import Path

from c2fmae.config.pretrain import PretrainConfig
from c2fmae.core.errors import UserError
from c2fmae.core.run_dir import find_checkpoint
from c2fmae.data import Scenes
from c2fmae.methods import MaskedAutoencoding, build_method
from c2fmae.methods.dataset_defaults import required_granularities


@dataclass(frozen=True)
class LoadedRun:
    """What a run, or one of its checkpoints, holds."""

    config: PretrainConfig
    method: MaskedAutoencoding
    step: int
    class_names: tuple[str, ...]


def load_run(path: Path, *, step: int | None = None, use_ema: bool = False) -> LoadedRun:
    """Return the model of a run at its newest whole checkpoint, at a step, or of a checkpoint's own folder.

    With `use_ema`, its weights are those that `training.ema` averaged.
    """
    if path.is_file():
        raise UserError(
            f"{path} has no decoder weights, so nothing can be reconstructed from it: it holds an encoder alone. "
            "Take the run folder it came from"
        )
    checkpoint = find_checkpoint(path, step)
    if "classifier" in checkpoint.metadata:
        raise UserError(f"{path}: is a fine-tuned classifier and has no decoder. Take the run that it was made of")
    config = PretrainConfig.from_dict(
        {key: value for key, value in checkpoint.metadata["config"].items() if key in PretrainConfig.model_fields},
        source=str(path),
    )
    method = build_method(config.method, seed=config.training.seed)
    ema_tensors = checkpoint.tensors_of("ema") if use_ema else {}
    if use_ema and not ema_tensors:
        raise UserError(f"{path}: holds no average of weights: it was trained without training.ema")
    method.model.load_state_dict({**checkpoint.tensors_of("model"), **ema_tensors})
    return LoadedRun(config, method, checkpoint.step, tuple(checkpoint.metadata["classes"]))


def open_run_scenes(config: PretrainConfig) -> Scenes:
    """Return the scenes that a run was held to, or those that it learned from where it had none."""
    names = required_granularities(config.method)
    return config.data.open_held_out(names) or config.data.open_training(names)
