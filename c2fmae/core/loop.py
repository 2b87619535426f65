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

from c2fmae.core.distributed import World, reducing
from c2fmae.core.ema import average_of, follow
from c2fmae.core.errors import UserError
from c2fmae.core.optimiser import TRUNK, adamw, moments, parameter_groups, restore_moments, set_rate
from c2fmae.core.seeding import seed_of
from c2fmae.core.sharding import gather, norm_of, part_like
from c2fmae.core.training import Plan, TrainingConfig

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
    def parts(self) -> Mapping[str, Tensor]:
        """By name, without."""
        ...


@runtime_checkable
class Task(Protocol[B, P]):
    """What the loop trains, and all that it knows of it."""

    def split(self, batch: B, *, parts: int, step: int, progress: float, world: World) -> Sequence[P]:
        """Return a process's batch in equal parts, on the device, with all the noise that they need."""
        ...

    def counts(self, part: P) -> Mapping[str, Tensor]:
        """Return whole numbers to be added up over the batch: what the losses are means over, and more to watch."""
        ...

    def summary(self, counts: Mapping[str, int], progress: float) -> Mapping[str, float]:
        """Return what the counts of the whole batch tell, and what else is to be written down of a step."""
        ...

    def losses(self, model: nn.Module, part: P, counts: Mapping[str, Tensor]) -> Losses:
        """Return the part's share of the losses, divided by the counts of the whole batch."""
        ...

    def keys(self, part: P) -> Sequence[str]:
        """Return the names of the samples."""
        ...


@dataclass
class Training:
    """What changes from step to step: all that a checkpoint has to hold."""

    model: nn.Module
    optimiser: torch.optim.AdamW
    average: dict[str, Tensor] | None = None
    step: int = 0
    """Steps done."""
    bad_steps: int = 0
    """In a row, up to now."""

    @classmethod
    def start(cls, model: nn.Module, config: TrainingConfig) -> "Training":
        """Return a training that has not begun."""
        groups = parameter_groups(model, weight_decay=config.weight_decay, layer_decay=config.layer_decay, trunk=TRUNK)
        average = average_of(model) if config.ema is not None else None
        return cls(model, adamw(groups, betas=config.betas), average)

    def tensors(self) -> dict[str, Tensor]:
        """Return everything by name: `model/…`, `optimiser/…`, `ema/…`; what is sharded, whole in the first process."""
        parts = {"model": self.model.state_dict(), "optimiser": moments(self.optimiser), "ema": self.average or {}}
        return gather({f"{part}/{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()})

    def restore(self, tensors: Mapping[str, Tensor], *, step: int, bad_steps: int = 0) -> None:
        """Take up where `tensors` were taken."""
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "optimiser": {}, "ema": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition("/")
            parts[part][rest] = tensor
        ours = self.model.state_dict()
        _check_fit(ours, parts["model"])
        self.model.load_state_dict({name: part_like(tensor, ours[name]) for name, tensor in parts["model"].items()})
        restore_moments(self.optimiser, parts["optimiser"])
        for name, tensor in (self.average or {}).items():  # one that begins here begins at the weights
            tensor.copy_(part_like(parts["ema"].get(name, parts["model"][name]), tensor))
        self.step, self.bad_steps = step, bad_steps


@dataclass(frozen=True)
class Report:
    """What is known of a step that was taken; the same in all processes, but for `trouble`."""

    step: int
    """Steps done with it."""
    values: dict[str, float]
    answers: dict[str, int]
    """What the processes said, added up."""
    trouble: list[dict[str, Any]] | None
    """Of a step that was skipped, since something was not finite: this process's samples and losses."""


@dataclass(frozen=True)
class Loop(Generic[B, P]):
    """How a training takes its steps."""

    task: Task[B, P]
    config: TrainingConfig
    plan: Plan
    world: World = World()  # noqa: RUF009 - frozen

    def steps(
        self, training: Training, batches: Iterable[B], ask: Callable[[], Mapping[str, int]] = dict
    ) -> Iterator[Report]:
        """Take a step for each batch, to the end of the plan, and report on it.

        `ask` tells what this process wants all to know, in numbers that are added up: that it was told to stop, say.
        """
        training.model.train()
        model = self.world.wrap(training.model)
        for batch in islice(batches, max(self.plan.steps - training.step, 0)):
            yield self.take(training, model, batch, ask())

    def take(self, training: Training, model: nn.Module, batch: B, said: Mapping[str, int]) -> Report:
        """Take one step: noise, counts, losses, gradients, weights."""
        step, plan, task = training.step, self.plan, self.task
        rate, progress = plan.lr(step), plan.progress(step)
        torch.manual_seed(seed_of(self.config.seed, "step", step, self.world.rank))  # for drop path
        parts = task.split(batch, parts=plan.micro_batches, step=step, progress=progress, world=self.world)
        counts = [task.counts(part) for part in parts]
        totals, answers = self._add_up(counts, said)

        errors = []
        for index, part in enumerate(parts):
            with reducing(model, is_last=index + 1 == len(parts)):
                with autocast(self.config, self.world.device):
                    losses = task.losses(model, part, totals)
                (losses.total * self.world.size).backward()  # gradients are averaged over the processes
            errors.append({"loss": losses.total.detach(), **{f"loss/{k}": v for k, v in losses.parts.items()}})
        norm = norm_of(p.grad for p in training.model.parameters() if p.grad is not None)

        sums = torch.stack([torch.stack(list(each.values())) for each in errors]).double().sum(dim=0)
        found = torch.cat([self.world.add(sums), norm.double().view(1), answers]).tolist()  # the one wait for a GPU
        losses_and_norm = dict(zip([*errors[0], "grad_norm"], found, strict=False))
        is_finite = all(map(math.isfinite, losses_and_norm.values()))
        if is_finite:
            self._update(training, rate, norm)
        training.optimiser.zero_grad()
        training.step += 1
        training.bad_steps = 0 if is_finite else training.bad_steps + 1
        numbers = {k: int(v) for k, v in zip([*totals, *said], found[len(losses_and_norm) :], strict=True)}
        place = {"epoch": training.step / plan.steps_per_epoch, "progress": progress, "lr": rate}
        return Report(
            step=training.step,
            values={**place, **losses_and_norm, **task.summary(numbers, progress)},
            answers={name: numbers[name] for name in said},
            trouble=None if is_finite else self._trouble(parts, errors),
        )

    def _add_up(
        self, counts: Sequence[Mapping[str, Tensor]], said: Mapping[str, int]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Add up over micro-batches and processes, in one go, all that has to be known before the backward."""
        names = list(counts[0])
        ours = torch.stack([torch.stack([each[name] for name in names]) for each in counts]).sum(dim=0)
        answers = torch.tensor(list(said.values()), dtype=ours.dtype).to(ours.device, non_blocking=True)
        numbers = self.world.add(torch.cat([ours, answers]))
        return dict(zip(names, numbers, strict=False)), numbers.double()

    def _update(self, training: Training, rate: float, norm: Tensor) -> None:
        if self.config.clip is not None:
            clip_grads_with_norm_(training.model.parameters(), self.config.clip, norm)
        set_rate(training.optimiser, rate)
        training.optimiser.step()
        if training.average is not None and self.config.ema is not None:
            follow(training.average, training.model, self.config.ema)

    def _trouble(self, parts: Sequence[P], errors: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Any]]:
        return [
            {"keys": list(self.task.keys(part)), **{name: float(value) for name, value in each.items()}}
            for part, each in zip(parts, errors, strict=True)
        ]


def _check_fit(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    shapes = [{name: tuple(tensor.shape) for name, tensor in each.items()} for each in (theirs, ours)]
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
