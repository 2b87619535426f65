"""The training loop, for any task that defines a loss.

A step is a function of weights, batch and step number. Counts are summed over micro-batches and ranks before any
division, so accumulated micro-batches give the gradient of the global batch. All ranks make the same decisions.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_

from c2fmae.core.checkpoint import check_model_tensors
from c2fmae.core.distributed import World, gradient_sync
from c2fmae.core.ema import init_ema, update_ema
from c2fmae.core.errors import UserError
from c2fmae.core.optimiser import build_adamw, build_parameter_groups, get_moments, load_moments, set_lr
from c2fmae.core.running_statistics import restore_statistics, running_statistics
from c2fmae.core.seeding import derive_seed
from c2fmae.core.sharding import compute_total_norm, gather, shard_like
from c2fmae.core.training import TrainingConfig, TrainingPlan

B = TypeVar("B", contravariant=True)
P = TypeVar("P")


class StepLoss(NamedTuple):
    """Loss of a step, or the part of it that a micro-batch contributes."""

    total: Float[Tensor, ""]
    """The weighted loss, with its autograd graph."""
    terms: dict[str, Float[Tensor, ""]]
    """Unweighted, detached terms of the loss, by name."""


@runtime_checkable
class Task(Protocol[B, P]):
    """A training task: it splits batches `B` into micro-batches `P` and defines their loss."""

    def split(self, batch: B, *, num_micro_batches: int, step: int, progress: float, world: World) -> Sequence[P]:
        """Return the batch of this rank as micro-batches of equal size, on the device, with all random choices made."""
        ...

    def compute_counts(self, micro_batch: P) -> Mapping[str, Tensor]:
        """Return integers that are summed over the global batch: the denominators of the losses, and others to log."""
        ...

    def summarise_counts(self, counts: Mapping[str, int], progress: float) -> Mapping[str, float]:
        """Return further values to log, from the counts of the global batch. Optional."""
        del counts, progress
        return {}

    def compute_losses(self, model: nn.Module, micro_batch: P, counts: Mapping[str, Tensor]) -> StepLoss:
        """Return the loss of a micro-batch, divided by the counts of the global batch."""
        ...

    def sample_keys(self, micro_batch: P) -> Sequence[str]:
        """Return the keys of the samples."""
        ...


@dataclass
class TrainingState:
    """Model, optimiser, averaged weights and step: everything that changes during training."""

    model: nn.Module
    optimiser: torch.optim.AdamW
    ema: dict[str, Tensor] | None = None
    step: int = 0
    """Number of steps done."""
    bad_steps: int = 0
    """Number of skipped steps in a row up to now."""

    @classmethod
    def create(cls, model: nn.Module, config: TrainingConfig) -> "TrainingState":
        """Return the state before the first step."""
        groups = build_parameter_groups(model, weight_decay=config.weight_decay, layer_decay=config.layer_decay)
        average = init_ema(model) if config.ema is not None else None
        return cls(model, build_adamw(groups, betas=config.betas), average)

    def gather_tensors(self) -> dict[str, Tensor]:
        """Return all tensors as `model/…`, `optimiser/…` and `ema/…`; if they are sharded, on the main process only."""
        parts = {"model": self.model.state_dict(), "optimiser": get_moments(self.optimiser), "ema": self.ema or {}}
        return gather({f"{part}/{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()})

    def restore(self, tensors: Mapping[str, Tensor], *, step: int, bad_steps: int = 0) -> None:
        """Restore the state of a checkpoint. Averaged weights that it does not contain are copied from its weights.

        Raises a `UserError` if its tensors are not those of the model and the optimiser.
        """
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "optimiser": {}, "ema": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition("/")
            if part not in parts:
                raise UserError(f"the checkpoint has an unexpected tensor, {name!r}. Use another checkpoint")
            parts[part][rest] = tensor
        current = self.model.state_dict()
        check_model_tensors(parts["model"], current)
        check_model_tensors(parts["ema"], {name: current[name] for name in parts["ema"] if name in current})
        self.model.load_state_dict({name: shard_like(tensor, current[name]) for name, tensor in parts["model"].items()})
        load_moments(self.optimiser, parts["optimiser"])
        for name, tensor in (self.ema or {}).items():
            tensor.copy_(shard_like(parts["ema"].get(name, parts["model"][name]), tensor))
        self.step, self.bad_steps = step, bad_steps


@dataclass(frozen=True)
class StepReport:
    """Result of a step, equal on all ranks except for `skip_details`."""

    step: int
    """Number of steps done, including this one."""
    values: dict[str, float]
    """Values to log."""
    flags: dict[str, int]
    """Requests, summed over ranks."""
    skip_details: list[dict[str, Any]] | None
    """Sample keys and losses of the micro-batches of this rank, if the step was skipped (a value is not finite)."""


@dataclass(frozen=True)
class TrainingLoop(Generic[B, P]):
    """The training steps of a task, as many and at the learning rates that a plan defines."""

    task: Task[B, P]
    config: TrainingConfig
    plan: TrainingPlan
    world: World = World()  # noqa: RUF009 - frozen

    def run(
        self, training: TrainingState, batches: Iterable[B], read_flags: Callable[[], Mapping[str, int]] = dict
    ) -> Iterator[StepReport]:
        """Run a step for each batch, up to the end of the plan, and yield its report.

        `read_flags` returns this rank's requests, such as to stop or to save, as numbers, which are summed over ranks.
        """
        training.model.train()
        model = self.world.wrap_ddp(training.model)
        for batch in islice(batches, max(self.plan.steps - training.step, 0)):
            yield self.run_step(training, model, batch, read_flags())

    def run_step(self, training: TrainingState, model: nn.Module, batch: B, flags: Mapping[str, int]) -> StepReport:
        """Run one step. It is skipped, but counted, if the loss or the gradient norm is not finite."""
        step, plan, task = training.step, self.plan, self.task
        lr, progress = plan.lr(step), plan.progress(step)
        torch.manual_seed(derive_seed(self.config.seed, "step", step, self.world.rank))  # for drop path
        micro_batches = task.split(
            batch, num_micro_batches=plan.num_micro_batches, step=step, progress=progress, world=self.world
        )
        counts, counts_and_flags = self._reduce_counts([task.compute_counts(part) for part in micro_batches], flags)

        # The forward pass changes running statistics, also in a step that is skipped.
        statistics = {name: buffer.clone() for name, buffer in running_statistics(training.model).items()}
        losses = []
        for index, micro_batch in enumerate(micro_batches):
            with gradient_sync(model, is_last_micro_batch=index + 1 == len(micro_batches)):
                with autocast(self.config, self.world.device):
                    loss = task.compute_losses(model, micro_batch, counts)
                (loss.total * self.world.size).backward()  # gradients are averaged over ranks
            losses.append({"loss": loss.total.detach(), **{f"loss/{k}": term for k, term in loss.terms.items()}})
        norm = compute_total_norm(p.grad for p in training.model.parameters() if p.grad is not None)

        loss_sums = torch.stack([torch.stack(list(terms.values())) for terms in losses]).double().sum(dim=0)
        results = torch.cat([self.world.all_reduce(loss_sums), norm.double().view(1), counts_and_flags])
        sums = results.tolist()  # the only synchronisation with a GPU
        losses_and_norm = dict(zip([*losses[0], "grad_norm"], sums, strict=False))
        is_finite = all(map(math.isfinite, losses_and_norm.values()))
        if is_finite:
            self._update(training, lr, norm)
        else:
            restore_statistics(training.model, statistics)
        training.optimiser.zero_grad()
        training.step += 1
        training.bad_steps = 0 if is_finite else training.bad_steps + 1
        integers = {k: int(v) for k, v in zip([*counts, *flags], sums[len(losses_and_norm) :], strict=True)}
        position = {"epoch": training.step / plan.steps_per_epoch, "progress": progress, "lr": lr}
        return StepReport(
            step=training.step,
            values={**position, **losses_and_norm, **task.summarise_counts(integers, progress)},
            flags={name: integers[name] for name in flags},
            skip_details=None if is_finite else self._describe_skip(micro_batches, losses),
        )

    def _reduce_counts(
        self, counts: Sequence[Mapping[str, Tensor]], flags: Mapping[str, int]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Sum counts and flags over micro-batches and ranks, in one collective, before the backward pass."""
        names = list(counts[0])
        local_counts = torch.stack([torch.stack([by_name[name] for name in names]) for by_name in counts]).sum(dim=0)
        flag_tensor = torch.tensor(list(flags.values()), dtype=local_counts.dtype).to(
            local_counts.device, non_blocking=True
        )
        sums = self.world.all_reduce(torch.cat([local_counts, flag_tensor]))
        return dict(zip(names, sums, strict=False)), sums.double()

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
            {"keys": list(self.task.sample_keys(micro_batch)), **{name: float(loss) for name, loss in terms.items()}}
            for micro_batch, terms in zip(micro_batches, losses, strict=True)
        ]


def autocast(config: TrainingConfig, device: torch.device) -> torch.autocast:
    """Return the autocast context of a config's precision."""
    return torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16")
