"""Training settings, and the plan that follows from them for a number of samples and processes."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from c2fmae.core.config import RESUME_SAFE, Config, PositiveInt, UnitInterval
from c2fmae.core.errors import UserError
from c2fmae.core.schedules import warmup_cosine, warmup_linear, warmup_multistep
from c2fmae.core.text import format_count

DeviceName = Literal["auto", "cpu", "cuda"]
ScheduleName = Literal["cosine", "linear", "steps"]
CompiledParts = Literal["off", "blocks", "model"]
"""What is compiled: nothing, each block and the losses, or the model and the losses as one graph."""


def _name_compiled_parts(value: object) -> object:
    """Return the name of a boolean: earlier versions wrote booleans, and YAML reads the word off as one."""
    return {True: "model", False: "off"}[value] if isinstance(value, bool) else value


CompileSetting = Annotated[
    Literal["auto", "off", "blocks", "model"], BeforeValidator(_name_compiled_parts), RESUME_SAFE
]
PrecisionSetting = Literal["auto", "bf16", "fp32"]
StreamPrecisionSetting = Literal["auto", "bf16", "bf16-stream", "fp32"]

ALTERNATIVES = (("epochs", "steps"), ("base_lr", "lr"), ("warmup_epochs", "warmup_steps"))
"""Pairs of settings of which at most one is set."""


class TrainingConfig(Config):
    """Optimisation: everything that determines the final weights, except data and method."""

    epochs: Annotated[float, Field(gt=0)] | None = None
    """Length in epochs. Set either this or `steps`."""
    steps: PositiveInt | None = None
    """Length in steps."""
    batch_size: PositiveInt = 2048
    """Samples per step, over all processes and micro-batches."""
    micro_batch: PositiveInt | None = None
    """Largest number of samples that a process computes at once. By default, all its samples of a batch."""
    base_lr: Annotated[float, Field(gt=0)] | None = None
    """Peak learning rate for a batch of 256, scaled linearly to `batch_size`. Set either this or `lr`."""
    lr: Annotated[float, Field(gt=0)] | None = None
    """Peak learning rate."""
    warmup_epochs: Annotated[float, Field(ge=0)] | None = None
    """Length of the linear warm-up in epochs. Set at most one of this and `warmup_steps`."""
    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    """Length of the linear warm-up in steps."""
    warmup_start: UnitInterval | None = None
    """Learning rate of the first step of the warm-up, as a fraction of the peak. By default, 1 / its steps."""
    schedule: ScheduleName = "cosine"
    """Decay of the learning rate after the warm-up: a half cosine, a straight line, or a factor at each milestone."""
    final_lr: UnitInterval = 0.0
    """Learning rate at the end of the schedules `cosine` and `linear`, as a fraction of the peak."""
    milestones: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = ()
    """Fractions of the run at which the schedule `steps` multiplies the learning rate by `gamma`."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Factor of the learning rate at each milestone."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    final_weight_decay: Annotated[float, Field(ge=0)] | None = None
    """Weight decay at the end of the run, to which `weight_decay` changes by a half cosine. By default it stays."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Learning rate of an encoder block, as a fraction of that of the block after it."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.95)
    clip: Annotated[float, Field(gt=0)] | None = None
    """Largest gradient norm; larger gradients are scaled down to it."""
    clip_each: Annotated[float, Field(gt=0)] | None = None
    """Largest norm of the gradient of each parameter. Set at most one of this and `clip`."""
    ema: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Decay of an exponential moving average of the weights, which is saved in checkpoints too."""
    compile: CompileSetting = "auto"
    """What torch.compile compiles: nothing (`off`), each block and the losses (`blocks`), or the model and the losses
    as one graph (`model`). `auto` is `blocks` on a GPU and `off` on a CPU. A change on resume is reported as a change
    of the environment."""
    precision: StreamPrecisionSetting = "auto"
    """`bf16` (autocast), `bf16-stream` (autocast, with residual streams in bfloat16) or `fp32`. A run with `auto` gets
    bf16 on a GPU and on CPUs that have instructions for it, and fp32 on others, where bf16 is emulated; the config of
    the run contains the result."""
    sharded: bool = False
    """Shard weights, gradients and optimiser state over the processes (FSDP2), for models too large for one GPU."""
    max_bad_steps: PositiveInt = 10
    """Abort the run after this many consecutive steps with a loss or gradient that is not finite. Such steps are
    skipped."""
    seed: int = 0
    device: DeviceName = "auto"

    @model_validator(mode="after")
    def _check(self) -> "TrainingConfig":
        for one, other in ALTERNATIVES[:2]:
            if (getattr(self, one) is None) == (getattr(self, other) is None):
                raise UserError(f"expected either {one} or {other}. Set the other to null")
        if self.warmup_epochs is not None and self.warmup_steps is not None:
            raise UserError("expected either warmup_epochs or warmup_steps. Set the other to null")
        if self.clip is not None and self.clip_each is not None:
            raise UserError("expected either clip or clip_each. Set the other to null")
        if (self.schedule == "steps") != bool(self.milestones):
            raise UserError(
                f"milestones: are for schedule=steps, which needs them, got schedule={self.schedule} and "
                f"{format_count(len(self.milestones), 'milestone')}. Change one of them"
            )
        if list(self.milestones) != sorted(set(self.milestones)):
            raise UserError(f"milestones: expected increasing fractions of the run, got {list(self.milestones)}")
        if self.schedule == "steps" and self.final_lr:
            raise UserError("final_lr: is for the schedules cosine and linear, got schedule=steps. Set it to 0")
        if self.sharded and self.compile == "model":
            raise UserError(
                "compile: a sharded model cannot be one graph, because weights are gathered between blocks (expected "
                "blocks or off, got model). Set it to blocks"
            )
        return self

    def choose_compiled_parts(self, device_type: str) -> CompiledParts:
        """Return what is compiled on a type of device, such as `cuda`."""
        if self.compile == "auto":
            return "blocks" if device_type == "cuda" else "off"
        return self.compile


def derive_training_settings(settings: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that follow from overrides of `settings`, where the overrides do not set them.

    Setting one of two alternatives clears the other. A new length keeps the fraction of the run that is warm-up, except
    that a run that becomes longer keeps its warm-up.

    >>> derive_training_settings({"epochs": 400, "base_lr": 1e-4, "warmup_epochs": 40}, {"steps": 1000, "lr": 1e-3})
    {'epochs': None, 'base_lr': None, 'warmup_epochs': None, 'warmup_steps': 100}
    """
    derived: dict[str, Any] = {}
    for pair in ALTERNATIVES:
        for key, other in (pair, pair[::-1]):
            is_cleared = overrides.get(key) is not None and other not in overrides
            if is_cleared and settings.get(other) is not None:
                derived[other] = None
    return derived | _scale_warmup(settings, overrides)


def _scale_warmup(settings: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return the warm-up for a new length; nothing if it stays, or is set too."""
    unit, old_unit = (
        next((name for name in ("steps", "epochs") if _is_positive(values.get(name))), None)
        for values in (overrides, settings)
    )
    old_warmup = settings.get(f"warmup_{old_unit}")
    is_set = "warmup_steps" in overrides or "warmup_epochs" in overrides
    if unit is None or old_unit is None or is_set or not _is_positive(old_warmup):
        return {}
    ratio = overrides[unit] / settings[old_unit]
    if unit == old_unit:
        ratio = min(ratio, 1)
    warmup = round(old_warmup * ratio) if unit == "steps" else float(f"{old_warmup * ratio:.6g}")
    if unit != old_unit:
        return {f"warmup_{old_unit}": None, f"warmup_{unit}": warmup}
    return {f"warmup_{unit}": warmup} if warmup != old_warmup else {}


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < inf


@dataclass(frozen=True)
class TrainingPlan:
    """Training settings resolved for a number of samples and processes."""

    steps: int
    warmup_steps: int
    steps_per_epoch: int
    batch_size: int
    batch_size_per_rank: int
    """Samples of one process per step."""
    num_micro_batches: int
    """Equal parts of a process's batch, computed one after another."""
    peak_lr: float
    final_lr_ratio: float
    """Final learning rate, as a fraction of the peak."""
    schedule: ScheduleName = "cosine"
    milestones: tuple[int, ...] = ()
    """Steps, counted from 0, from which on the learning rate is multiplied by `gamma` once more."""
    gamma: float = 0.1
    warmup_start: float | None = None
    """Learning rate of the first step, as a fraction of the peak; None for 1 / `warmup_steps`."""

    def lr(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        warmup_steps, warmup_start = self.warmup_steps, self.warmup_start
        if self.schedule == "steps":
            return self.peak_lr * warmup_multistep(
                step,
                milestones=self.milestones,
                gamma=self.gamma,
                warmup_steps=warmup_steps,
                warmup_start=warmup_start,
            )
        decay = warmup_linear if self.schedule == "linear" else warmup_cosine
        return self.peak_lr * decay(
            step,
            total_steps=self.steps,
            warmup_steps=warmup_steps,
            floor=self.final_lr_ratio,
            warmup_start=warmup_start,
        )

    def describe_schedule(self) -> str:
        """Return the decay of the learning rate in words.

        >>> TrainingPlan(8, 0, 4, 2, 2, 1, 0.1, 0.0, "steps", (4, 6), 0.1).describe_schedule()
        'the learning rate multiplied by 0.1 after 4 and 6 steps'
        """
        if self.schedule != "steps":
            return f"a {self.schedule} schedule"
        steps = " and ".join(f"{milestone:,}" for milestone in self.milestones)
        return f"the learning rate multiplied by {self.gamma:g} after {steps} steps"

    def progress(self, step: int) -> float:
        """Return the fraction of the run that is complete before a step, in [0, 1)."""
        return step / self.steps

    def __str__(self) -> str:
        parts = f" in {self.num_micro_batches} micro-batches" if self.num_micro_batches > 1 else ""
        processes = self.batch_size // self.batch_size_per_rank
        epochs = self.steps / self.steps_per_epoch
        return (
            f"{format_count(self.steps, 'step')} ({format_count(epochs, 'epoch')} of {self.steps_per_epoch}), "
            f"{self.warmup_steps:,} of warm-up; batch {self.batch_size:,} = "
            f"{format_count(processes, 'process', 'processes')} × {self.batch_size_per_rank:,}{parts}; "
            f"learning rate up to {self.peak_lr:.4g}"
        )


def plan_training(config: TrainingConfig, *, num_samples: int, world_size: int) -> TrainingPlan:
    """Derive length, micro-batches and learning rate. Raise a `UserError` if they do not fit the data."""
    batch = config.batch_size
    if batch > num_samples:
        raise UserError(
            f"training.batch_size: the data has only {num_samples} samples, got a batch of {batch}. Set it lower"
        )
    if batch % world_size:
        raise UserError(
            f"training.batch_size: expected a multiple of the {world_size} processes, got {batch}. Change one of them"
        )
    batch_size_per_rank = batch // world_size
    num_micro_batches = -(-batch_size_per_rank // (config.micro_batch or batch_size_per_rank))
    while batch_size_per_rank % num_micro_batches:  # equal parts, so that a compiled step has one shape
        num_micro_batches += 1
    per_epoch = num_samples // batch
    steps = config.steps or round((config.epochs or 0) * per_epoch)
    warmup = config.warmup_steps or round((config.warmup_epochs or 0) * per_epoch)
    if steps < 1:
        raise UserError(
            f"training.epochs: {config.epochs} × {format_count(per_epoch, 'step')} is less than one step. Set it higher"
        )
    if warmup > steps:
        key = "warmup_steps" if config.warmup_steps else "warmup_epochs"
        raise UserError(f"training.{key}: the warm-up has {warmup} steps, but the run only {steps}. Set it lower")
    milestones = tuple(round(milestone * steps) for milestone in config.milestones)
    if len({0, *milestones, steps}) < len(milestones) + 2:
        raise UserError(
            f"training.milestones: {list(config.milestones)} of {format_count(steps, 'step')} are not different steps "
            "within the run. Train longer, or change them"
        )
    peak = config.lr if config.lr is not None else (config.base_lr or 0) * batch / 256
    return TrainingPlan(
        steps,
        warmup,
        per_epoch,
        batch,
        batch_size_per_rank,
        num_micro_batches,
        peak,
        config.final_lr,
        config.schedule,
        milestones,
        config.gamma,
        config.warmup_start,
    )
