"""The parts of protocols that trainings on a backbone share."""

from c2fmae.core.text import format_count
from c2fmae.core.training import TrainingConfig, TrainingPlan
from c2fmae.eval.training_config import BackboneInputs


def describe_optimisation(
    config: BackboneInputs,
    training: TrainingConfig,
    plan: TrainingPlan,
    train_name: str,
    image_size: tuple[int, int] | None,
) -> list[str]:
    """Return clauses on the length, the data, the start and the optimisation of a training.

    `image_size` is that of all images; None if they differ.
    """
    size = f" at {image_size[0]}×{image_size[1]}" if image_size is not None else ""
    return [
        f"Fine-tuned for {format_count(plan.steps / plan.steps_per_epoch, 'epoch')} on {train_name}{size}",
        f"from {config.describe_init()}",
        f"batch {plan.batch_size}, AdamW, peak learning rate {plan.peak_lr:.3g}, "
        f"{format_count(plan.warmup_steps, 'step')} of warm-up, {plan.describe_schedule()}",
        f"weight decay {_describe_weight_decay(training)}, layer decay {training.layer_decay:g}, "
        f"drop path {config.drop_path:g}",
    ]


def _describe_weight_decay(training: TrainingConfig) -> str:
    final = f" to {training.final_weight_decay:g}" if training.final_weight_decay is not None else ""
    return f"{training.weight_decay:g}{final}"


def describe_clipping(training: TrainingConfig) -> list[str]:
    """Return clauses on the clipping of gradients and the averaging of weights, where there is any."""
    return [
        *([f"gradients clipped to {training.clip:g}"] if training.clip else []),
        *([f"the gradient of each parameter clipped to {training.clip_each:g}"] if training.clip_each else []),
        *([f"weights averaged with decay {training.ema:g}"] if training.ema is not None else []),
    ]


def describe_frozen(config: BackboneInputs) -> list[str]:
    """Return a clause on the blocks that are trained, if not all are."""
    if config.train_blocks is None:
        return []
    if config.train_blocks == 0:
        return ["the backbone frozen"]
    return [f"only the last {format_count(config.train_blocks, 'block')} trained"]
