"""The one training loop: what is trained, on what and how it is judged are the task's business.

A step is a function of weights, batch and step number. Its counts are added up over micro-batches and processes before
anything is divided, so many small parts give the gradient of the one big batch; what it decides, all processes decide.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_

from c2fmae.core.distributed import World, gradient_sync
from c2fmae.core.ema import init_ema, update_ema
from c2fmae.core.errors import UserError
from c2fmae.core.optimiser import build_adamw, build_parameter_groups, get_moments, load_moments, set_lr
from c2fmae.core.seeding import derive_seed
from c2fmae.core.sharding import compute_total_norm, gather, shard_like
from c2fmae.core.training import TrainingConfig, TrainingPlan

B = TypeVar("B", contravariant=True)
P = TypeVar("P")


@runtime_checkable
class Losses(Protocol):
    """What a part of a batch adds to the loss."""

    @property
    def total(self) -> Tensor:
        """With its graph."""
        ...

    @property
    def terms(self) -> Mapping[str, Tensor]:
        """By name, without."""
        ...


@runtime_checkable
class Task(Protocol[B, P]):
    """What the loop trains, and all that it knows of it."""

    def split(self, batch: B, *, num_micro_batches: int, step: int, progress: float, world: World) -> Sequence[P]:
        """Return a process's batch in equal parts, on the device, with all the noise that they need."""
        ...

    def compute_counts(self, micro_batch: P) -> Mapping[str, Tensor]:
        """Return whole numbers to be added up over the batch: what the losses are means over, and more to watch."""
        ...

    def summarise_counts(self, counts: Mapping[str, int], progress: float) -> Mapping[str, float]:
        """Return what the counts of the whole batch tell, and what else is to be written down of a step."""
        ...

    def compute_losses(self, model: nn.Module, micro_batch: P, counts: Mapping[str, Tensor]) -> Losses:
        """Return the part's share of the losses, divided by the counts of the whole batch."""
        ...

    def sample_keys(self, micro_batch: P) -> Sequence[str]:
        """Return the names of the samples."""
        ...


@dataclass
class TrainingState:
    """What changes from step to step: all that a checkpoint has to hold."""

    model: nn.Module
    optimiser: torch.optim.AdamW
    ema: dict[str, Tensor] | None = None
    step: int = 0
    """Steps done."""
    bad_steps: int = 0
    """In a row, up to now."""

    @classmethod
    def create(cls, model: nn.Module, config: TrainingConfig) -> "TrainingState":
        """Return a training that has not begun."""
        groups = build_parameter_groups(model, weight_decay=config.weight_decay, layer_decay=config.layer_decay)
        average = init_ema(model) if config.ema is not None else None
        return cls(model, build_adamw(groups, betas=config.betas), average)

    def gather_tensors(self) -> dict[str, Tensor]:
        """Return everything by name: `model/…`, `optimiser/…`, `ema/…`; what is sharded, whole in the first process."""
        parts = {"model": self.model.state_dict(), "optimiser": get_moments(self.optimiser), "ema": self.ema or {}}
        return gather({f"{part}/{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()})

    def restore(self, tensors: Mapping[str, Tensor], *, step: int, bad_steps: int = 0) -> None:
        """Take up where `tensors` were taken."""
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "optimiser": {}, "ema": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition("/")
            parts[part][rest] = tensor
        ours = self.model.state_dict()
        _check_shapes(ours, parts["model"])
        self.model.load_state_dict({name: shard_like(tensor, ours[name]) for name, tensor in parts["model"].items()})
        load_moments(self.optimiser, parts["optimiser"])
        for name, tensor in (self.ema or {}).items():  # one that begins here begins at the weights
            tensor.copy_(shard_like(parts["ema"].get(name, parts["model"][name]), tensor))
        self.step, self.bad_steps = step, bad_steps


@dataclass(frozen=True)
class StepReport:
    """What is known of a step that was taken; the same in all processes, but for `skip_details`."""

    step: int
    """Steps done with it."""
    values: dict[str, float]
    flags: dict[str, int]
    """What the processes said, added up."""
    skip_details: list[dict[str, Any]] | None
    """Of a step that was skipped, since something was not finite: this process's samples and losses."""


@dataclass(frozen=True)
class TrainingLoop(Generic[B, P]):
    """How a training takes its steps."""

    task: Task[B, P]
    config: TrainingConfig
    plan: TrainingPlan
    world: World = World()  # noqa: RUF009 - frozen

    def run(
        self, training: TrainingState, batches: Iterable[B], read_flags: Callable[[], Mapping[str, int]] = dict
    ) -> Iterator[StepReport]:
        """Take a step for each batch, to the end of the plan, and report on it.

        `read_flags` returns this rank's requests (to stop or to save, say) as numbers, which are summed over the ranks.
        """
        training.model.train()
        model = self.world.wrap_ddp(training.model)
        for batch in islice(batches, max(self.plan.steps - training.step, 0)):
            yield self.run_step(training, model, batch, read_flags())

    def run_step(self, training: TrainingState, model: nn.Module, batch: B, flags: Mapping[str, int]) -> StepReport:
        """Take one step: noise, counts, losses, gradients, weights."""
        step, plan, task = training.step, self.plan, self.task
        lr, progress = plan.lr(step), plan.progress(step)
        torch.manual_seed(derive_seed(self.config.seed, "step", step, self.world.rank))  # for drop path
        parts = task.split(
            batch, num_micro_batches=plan.num_micro_batches, step=step, progress=progress, world=self.world
        )
        counts = [task.compute_counts(part) for part in parts]
        totals, answers = self._reduce_counts(counts, flags)

        losses = []
        for index, part in enumerate(parts):
            with gradient_sync(model, is_last_micro_batch=index + 1 == len(parts)):
                with autocast(self.config, self.world.device):
                    micro_losses = task.compute_losses(model, part, totals)
                (micro_losses.total * self.world.size).backward()  # gradients are averaged over the processes
            losses.append(
                {"loss": micro_losses.total.detach(), **{f"loss/{k}": v for k, v in micro_losses.terms.items()}}
            )
        norm = compute_total_norm(p.grad for p in training.model.parameters() if p.grad is not None)

        loss_sums = torch.stack([torch.stack(list(each.values())) for each in losses]).double().sum(dim=0)
        sums = torch.cat(
            [self.world.all_reduce(loss_sums), norm.double().view(1), answers]
        ).tolist()  # the one wait for a GPU
        losses_and_norm = dict(zip([*losses[0], "grad_norm"], sums, strict=False))
        is_finite = all(map(math.isfinite, losses_and_norm.values()))
        if is_finite:
            self._update(training, lr, norm)
        training.optimiser.zero_grad()
        training.step += 1
        training.bad_steps = 0 if is_finite else training.bad_steps + 1
        numbers = {k: int(v) for k, v in zip([*totals, *flags], sums[len(losses_and_norm) :], strict=True)}
        position = {"epoch": training.step / plan.steps_per_epoch, "progress": progress, "lr": lr}
        return StepReport(
            step=training.step,
            values={**position, **losses_and_norm, **task.summarise_counts(numbers, progress)},
            flags={name: numbers[name] for name in flags},
            skip_details=None if is_finite else self._describe_skip(parts, losses),
        )

    def _reduce_counts(
        self, counts: Sequence[Mapping[str, Tensor]], flags: Mapping[str, int]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Add up over micro-batches and processes, in one go, all that has to be known before the backward."""
        names = list(counts[0])
        local_counts = torch.stack([torch.stack([each[name] for name in names]) for each in counts]).sum(dim=0)
        flag_tensor = torch.tensor(list(flags.values()), dtype=local_counts.dtype).to(
            local_counts.device, non_blocking=True
        )
        numbers = self.world.all_reduce(torch.cat([local_counts, flag_tensor]))
        return dict(zip(names, numbers, strict=False)), numbers.double()

    def _update(self, training: TrainingState, lr: float, norm: Tensor) -> None:
        if self.config.clip is not None:
            clip_grads_with_norm_(training.model.parameters(), self.config.clip, norm)
        set_lr(training.optimiser, lr)
        training.optimiser.step()
        if training.ema is not None and self.config.ema is not None:
            update_ema(training.ema, training.model, self.config.ema)

    def _describe_skip(
        self, micro_batches: Sequence[P], losses: Sequence[Mapping[str, Tensor]]
    ) -> list[dict[str, Any]]:
        return [
            {"keys": list(self.task.sample_keys(part)), **{name: float(value) for name, value in each.items()}}
            for part, each in zip(micro_batches, losses, strict=True)
        ]


def _check_shapes(expected: Mapping[str, Tensor], found_tensors: Mapping[str, Tensor]) -> None:
    shapes = [{name: tuple(tensor.shape) for name, tensor in each.items()} for each in (found_tensors, expected)]
    differ = [name for name in shapes[0] | shapes[1] if shapes[0].get(name) != shapes[1].get(name)]
    if differ:
        before, now = (each.get(differ[0], "none") for each in shapes)
        count = f"{len(differ)} of {len(shapes[0] | shapes[1])}"
        raise UserError(
            f"the checkpoint does not fit the config: {count} tensors differ, as {differ[0]}: "
            f"{before} → {now}. Such a change begins a new run: give another --out"
        )


def autocast(config: TrainingConfig, device: torch.device) -> torch.autocast:
    """Return the context in which a config's forward passes run."""
    return torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16")
