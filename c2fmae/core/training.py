"""How a training goes, as a recipe writes it, and what follows from it for so many processes and samples."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, model_validator

from c2fmae.core.config import Config, PositiveInt
from c2fmae.core.distributed import DeviceName
from c2fmae.core.errors import UserError
from c2fmae.core.schedules import warmup_cosine

UnitInterval = Annotated[float, Field(ge=0, le=1)]


class TrainingConfig(Config):
    """What decides the weights that a run ends with, beside its data and its method."""

    epochs: Annotated[float, Field(gt=0)] | None = None
    """Length, as passes over the data …"""
    steps: PositiveInt | None = None
    """… or in steps: one of the two."""
    batch_size: PositiveInt = 2048
    """Samples of a step, over all processes and micro-batches."""
    micro_batch: PositiveInt | None = None
    """Most samples that a process holds at once; unless given, its whole part of the batch."""
    base_lr: Annotated[float, Field(gt=0)] | None = None
    """Peak of the learning rate for a batch of 256 …"""
    lr: Annotated[float, Field(gt=0)] | None = None
    """… or for the batch that there is: one of the two."""
    warmup_epochs: Annotated[float, Field(ge=0)] | None = None
    """Of the length, so much goes by until the peak, in epochs …"""
    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    """… or in steps."""
    final_lr: UnitInterval = 0.0
    """Share of the peak at which the cosine ends."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Each block of the encoder learns this much slower than the one after it."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.95)
    clip: Annotated[float, Field(gt=0)] | None = None
    """Largest norm of the gradient; a larger one is scaled down to it."""
    ema: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Keep an average of the weights, of which this share stays at each step."""
    precision: Literal["bf16", "fp32"] = "bf16"
    compile: bool = False
    """Compile the model: a minute or more before the first step, faster steps."""
    sharded: bool = False
    """Shard weights, gradients and moments over the processes (FSDP2) instead of copying them: for models that one GPU
    cannot hold."""
    max_bad_steps: PositiveInt = 10
    """Steps in a row whose loss or gradient is not finite; they are skipped, and with so many the run ends."""
    seed: int = 0
    device: DeviceName = "auto"

    @model_validator(mode="after")
    def _check(self) -> "TrainingConfig":
        for one, other in (("epochs", "steps"), ("base_lr", "lr")):
            if (getattr(self, one) is None) == (getattr(self, other) is None):
                raise UserError(f"expected either {one} or {other}; set the other to null")
        if self.warmup_epochs is not None and self.warmup_steps is not None:
            raise UserError("expected either warmup_epochs or warmup_steps; set the other to null")
        if self.sharded and self.compile:
            raise UserError("sharded and compile do not go together; set one of them to false")
        return self


@dataclass(frozen=True)
class TrainingPlan:
    """What a config means for so many samples and processes."""

    steps: int
    warmup_steps: int
    steps_per_epoch: int
    batch_size: int
    batch_size_per_rank: int
    """Samples of a process in a step."""
    num_micro_batches: int
    """Parts in which it takes them."""
    peak_lr: float
    """Of the learning rate."""
    final_lr_ratio: float

    def lr(self, step: int) -> float:
        """Return the learning rate of a step, the first being 0."""
        return self.peak_lr * warmup_cosine(
            step, total_steps=self.steps, warmup_steps=self.warmup_steps, floor=self.final_lr_ratio
        )

    def progress(self, step: int) -> float:
        """Return how much of the run is done before a step, in [0, 1)."""
        return step / self.steps

    def __str__(self) -> str:
        parts = f" in {self.num_micro_batches} parts" if self.num_micro_batches > 1 else ""
        processes = self.batch_size // self.batch_size_per_rank
        return (
            f"{self.steps} steps ({self.steps / self.steps_per_epoch:.4g} epochs of {self.steps_per_epoch}), "
            f"{self.warmup_steps} of warm-up; batch {self.batch_size} = {processes} process{'es' * (processes > 1)} × "
            f"{self.batch_size_per_rank}{parts}; learning rate up to {self.peak_lr:.4g}"
        )


def plan_training(config: TrainingConfig, *, num_samples: int, world_size: int) -> TrainingPlan:
    """Derive length, micro-batches and learning rate; what does not come out even is refused."""
    batch = config.batch_size
    if batch > num_samples:
        raise UserError(
            f"training.batch_size: {batch} is more than the {num_samples} samples that there are. Set it lower"
        )
    if batch % world_size:
        raise UserError(f"training.batch_size: {batch} cannot be divided among {world_size} processes")
    batch_size_per_rank = batch // world_size
    num_micro_batches = -(-batch_size_per_rank // (config.micro_batch or batch_size_per_rank))
    while batch_size_per_rank % num_micro_batches:  # equal parts, so that a compiled step sees one shape
        num_micro_batches += 1
    per_epoch = num_samples // batch
    steps = config.steps or round((config.epochs or 0) * per_epoch)
    warmup = config.warmup_steps or round((config.warmup_epochs or 0) * per_epoch)
    if steps < 1:
        raise UserError(f"training.epochs: {config.epochs} of {per_epoch} steps each are no step at all")
    if warmup > steps:
        key = "warmup_steps" if config.warmup_steps else "warmup_epochs"
        raise UserError(f"training.{key}: {warmup} steps of warm-up are more than the run has, {steps}. Set it lower")
    peak = config.lr if config.lr is not None else (config.base_lr or 0) * batch / 256
    return TrainingPlan(steps, warmup, per_epoch, batch, batch_size_per_rank, num_micro_batches, peak, config.final_lr)
