"""The training loop, for any task that defines a loss.

A step is a function of weights, batch and step number. Counts are summed over micro-batches and ranks before any
division, so accumulated micro-batches give the gradient of the global batch. All ranks make the same decisions.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from types import MappingProxyType
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_

from c2fmae.core.checkpoint import check_model_tensors
from c2fmae.core.distributed import World, gradient_sync
from c2fmae.core.ema import averaged_tensors, init_ema, init_teacher, update_ema
from c2fmae.core.errors import UserError
from c2fmae.core.optimiser import (
    build_adamw,
    build_parameter_groups,
    clip_each_gradient,
    get_moments,
    load_moments,
    set_lr,
    set_weight_decay,
    step_if,
)
from c2fmae.core.precision import choose_precision
from c2fmae.core.ramps import Ramp, compute_value
from c2fmae.core.reduced_counts import ReducedCounts
from c2fmae.core.running_statistics import restore_statistics_unless, running_statistics
from c2fmae.core.seeding import derive_seed
from c2fmae.core.sharding import compute_total_norm, gather, shard_like
from c2fmae.core.training import TrainingConfig, TrainingPlan
from c2fmae.core.transfer import HostCopy

B = TypeVar("B", contravariant=True)
P = TypeVar("P")


class StepLoss(NamedTuple):
    """Loss of a step, or the part of it that a micro-batch contributes."""

    total: Float[Tensor, ""]
    """The weighted loss, with its autograd graph."""
    terms: dict[str, Float[Tensor, ""]]
    """Unweighted, detached terms of the loss, by name."""
    values: Mapping[str, Float[Tensor, ""]] = MappingProxyType({})
    """Further values to log, by name. Like losses, those of micro-batches and ranks add up."""
    sums: Mapping[str, Float[Tensor, "..."]] = MappingProxyType({})
    """Tensors for `StatefulTask.update_state`, summed over micro-batches and ranks."""


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
        """Return the loss of a micro-batch, divided by the counts of the global batch.

        Reading a count waits for all ranks to start this step, so read them after the forward pass.
        """
        ...

    def sample_keys(self, micro_batch: P) -> Sequence[str]:
        """Return the keys of the samples."""
        ...


@runtime_checkable
class HoldingTask(Protocol):
    """A task that holds some parameters in some steps."""

    def held_parameters(self, step: int) -> Iterable[nn.Parameter]:
        """Return the parameters that a step leaves as they are: it neither moves nor decays them."""
        ...


@runtime_checkable
class StatefulTask(Protocol):
    """A task whose model has state that changes after a step, such as a centre or a queue."""

    def update_state(self, model: nn.Module, sums: Mapping[str, Tensor], condition: Bool[Tensor, ""]) -> None:
        """Update the buffers of the model in place, if the condition holds, which only the device reads.

        `sums` are the `StepLoss.sums` of the global batch.
        """
        ...


@runtime_checkable
class TeacherTask(Protocol):
    """A task whose teacher is an average of the weights."""

    def teacher_momentum(self, step: int) -> float:
        """Return the weight of the teacher in its update after a step: teacher = m · teacher + (1 - m) · model."""
        ...


@dataclass
class TrainingState:
    """Model, optimiser, averaged weights and step: everything that changes during training."""

    model: nn.Module
    optimiser: torch.optim.AdamW
    ema: dict[str, Tensor] | None = None
    """The averages of weights, or of a part of them, by name. If there is a teacher, they are its parameters."""
    step: int = 0
    """Number of steps done."""
    bad_steps: int = 0
    """Number of skipped steps in a row, up to the last report."""

    @classmethod
    def create(cls, model: nn.Module, config: TrainingConfig, teacher: nn.Module | None = None) -> "TrainingState":
        """Return the state before the first step. A teacher gets the weights of the model, and then averages them.

        Raises a `UserError` if the config does not allow a teacher.
        """
        groups = build_parameter_groups(model, weight_decay=config.weight_decay, layer_decay=config.layer_decay)
        optimiser = build_adamw(groups, betas=config.betas)
        if teacher is None:
            return cls(model, optimiser, init_ema(model) if config.ema is not None else None)
        if config.ema is not None:
            raise UserError(
                "training.ema: a method with a teacher has averaged weights, those of its teacher (expected null, got "
                f"{config.ema:g}). Set it to null"
            )
        if config.sharded:
            raise UserError(
                "training.sharded: a method with a teacher cannot be sharded (expected false, got true). Set it to "
                "false"
            )
        return cls(model, optimiser, init_teacher(teacher, model))

    @cached_property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters of the model."""
        return [*self.model.parameters()]

    @cached_property
    def statistics(self) -> dict[str, Tensor]:
        """The running statistics of the model, by name."""
        return running_statistics(self.model)

    @cached_property
    def averaged(self) -> dict[str, Tensor]:
        """The tensors of the model whose averages are `ema`, by name."""
        tensors = averaged_tensors(self.model)
        return {name: tensors[name] for name in self.ema or {}}

    def named_tensors(self) -> dict[str, Tensor]:
        """Return all tensors as `model/…`, `optimiser/…` and `ema/…`, sharded as they are."""
        parts = {"model": self.model.state_dict(), "optimiser": get_moments(self.optimiser), "ema": self.ema or {}}
        return {f"{part}/{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}

    def gather_tensors(self) -> dict[str, Tensor]:
        """Return all tensors by the same names; if they are sharded, on the main process only."""
        return gather(self.named_tensors())

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
class PendingStep:
    """A step that is enqueued, and whose results are on their way to the host."""

    step: int
    """Number of steps done, including this one."""
    position: dict[str, float]
    """Epoch, progress and learning rate."""
    loss_names: list[str]
    value_names: list[str]
    count_names: list[str]
    flag_names: list[str]
    keys: list[Sequence[str]]
    """Sample keys of each micro-batch of this rank."""
    results: HostCopy
    """Whether the step was taken, then losses, values, gradient norm, counts and flags of all ranks, and the losses of
    each micro-batch of this rank."""


@dataclass(frozen=True)
class TrainingLoop(Generic[B, P]):
    """The training steps of a task, as many and at the learning rates that a plan defines."""

    task: Task[B, P]
    config: TrainingConfig
    plan: TrainingPlan
    world: World = World()  # noqa: RUF009 - frozen
    delay: int = 0
    """Number of further steps that are enqueued before the report of a step is read."""

    def run(
        self,
        training: TrainingState,
        batches: Iterable[B],
        read_flags: Callable[[], Mapping[str, int]] = dict,
        is_boundary: Callable[[int], bool] = lambda _: False,
    ) -> Iterator[StepReport]:
        """Run a step for each batch, up to the end of the plan, and yield its report.

        `read_flags` returns this rank's requests, such as to stop or to save, as numbers, which are summed over ranks.

        With a `delay`, `training` is ahead of the reports. But after the last step, and after a step for which
        `is_boundary` is true, all reports are yielded before the next step. It is asked again after each report.
        """
        training.model.train()
        model = self.world.wrap_ddp(training.model)
        pending: deque[PendingStep] = deque()
        for batch in islice(batches, max(self.plan.steps - training.step, 0)):
            pending.append(self.run_step(training, model, batch, read_flags()))
            while pending and (len(pending) > self.delay or is_boundary(training.step)):
                yield self._read_report(training, pending.popleft())
        for step in pending:
            yield self._read_report(training, step)

    def run_step(self, training: TrainingState, model: nn.Module, batch: B, flags: Mapping[str, int]) -> PendingStep:
        """Enqueue one step. It is skipped, but counted, if the loss or the gradient norm is not finite.

        The device alone decides this, so that it never waits for the host.
        """
        step, plan, task = training.step, self.plan, self.task
        progress = plan.progress(step)
        torch.manual_seed(derive_seed(self.config.seed, "step", step, self.world.rank))  # for drop path
        with autocast(self.config, self.world.device):  # a teacher may run here
            micro_batches = task.split(
                batch, num_micro_batches=plan.num_micro_batches, step=step, progress=progress, world=self.world
            )
        counts = ReducedCounts([task.compute_counts(part) for part in micro_batches], flags, self.world)

        # The forward pass changes running statistics, also in a step that is skipped.
        saved_statistics = {name: buffer.clone() for name, buffer in training.statistics.items()}
        losses: list[StepLoss] = []
        for index, micro_batch in enumerate(micro_batches):
            with gradient_sync(model, is_last_micro_batch=index + 1 == len(micro_batches)):
                with autocast(self.config, self.world.device):
                    loss = task.compute_losses(model, micro_batch, counts)
                (loss.total * self.world.size).backward()  # gradients are averaged over ranks
            losses.append(loss._replace(total=loss.total.detach()))
        if isinstance(task, HoldingTask):
            for parameter in task.held_parameters(step):
                parameter.grad = None
        norm = compute_total_norm(p.grad for p in training.parameters if p.grad is not None)

        shares = torch.stack([_flatten(loss) for loss in losses]).double()
        totals = self.world.all_reduce(shares.sum(dim=0))
        loss = losses[0]  # all have the same names
        num_losses, num_values = 1 + len(loss.terms), len(loss.values)
        loss_sums, value_sums, sums = totals.tensor_split([num_losses, num_losses + num_values])
        is_finite = torch.cat([loss_sums, sums, norm.double().view(1)]).isfinite().all()
        restore_statistics_unless(is_finite, training.statistics, saved_statistics)
        self._update(training, step, norm, is_finite)
        if isinstance(task, StatefulTask):
            with torch.no_grad():
                task.update_state(training.model, _unflatten(sums, loss.sums), is_finite)
        training.optimiser.zero_grad()
        training.step += 1
        results = (is_finite.double().view(1), loss_sums, norm.double().view(1), value_sums, counts.sums.double())
        return PendingStep(
            step=training.step,
            position={"epoch": training.step / plan.steps_per_epoch, "progress": progress, "lr": plan.lr(step)},
            loss_names=["loss", *(f"loss/{name}" for name in loss.terms)],
            value_names=list(loss.values),
            count_names=list(counts),
            flag_names=list(flags),
            keys=[task.sample_keys(micro_batch) for micro_batch in micro_batches],
            results=HostCopy(torch.cat([*results, shares[:, :num_losses].flatten()])),
        )

    def _update(self, training: TrainingState, step: int, norm: Tensor, is_finite: Tensor) -> None:
        """Update weights, moments and averages if the step is finite."""
        config, optimiser = self.config, training.optimiser
        if config.clip is not None:
            clip_grads_with_norm_(training.parameters, config.clip, norm)
        if config.clip_each is not None:
            clip_each_gradient([p.grad for p in training.parameters if p.grad is not None], config.clip_each)
        set_lr(optimiser, self.plan.lr(step))
        if config.final_weight_decay is not None:
            decay = Ramp(start=config.weight_decay, end=config.final_weight_decay)
            set_weight_decay(optimiser, compute_value(decay, step, self.plan))
        step_if(optimiser, is_finite)
        if training.ema is not None:
            update_ema(training.ema, training.averaged, self._averaging_decay(step), is_finite)

    def _averaging_decay(self, step: int) -> float:
        """Return the decay of averaged weights, or the momentum of the teacher."""
        if self.config.ema is not None:
            return self.config.ema
        if isinstance(self.task, TeacherTask):
            return self.task.teacher_momentum(step)
        raise ValueError(f"{type(self.task).__name__} has a teacher, but no method teacher_momentum. Define it")

    def _read_report(self, training: TrainingState, pending: PendingStep) -> StepReport:
        """Wait for the results of a step, count it if it was skipped, and return its report."""
        numbers = iter(pending.results.tolist())
        is_finite = bool(next(numbers))
        values = dict(zip([*pending.loss_names, "grad_norm", *pending.value_names], numbers, strict=False))
        counts, flags = (
            {name: int(number) for name, number in zip(names, numbers, strict=False)}
            for names in (pending.count_names, pending.flag_names)
        )
        micro_batches = [
            {"keys": list(keys), **dict(zip(pending.loss_names, numbers, strict=False))} for keys in pending.keys
        ]
        training.bad_steps = 0 if is_finite else training.bad_steps + 1
        return StepReport(
            step=pending.step,
            values={
                **pending.position,
                **values,
                **self.task.summarise_counts(counts, pending.position["progress"]),
            },
            flags=flags,
            skip_details=None if is_finite else micro_batches,
        )


def _flatten(loss: StepLoss) -> Float[Tensor, " number"]:
    """Return all tensors of a loss in one vector: losses, values, sums."""
    tensors = (loss.total, *loss.terms.values(), *loss.values.values(), *loss.sums.values())
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def _unflatten(flat: Float[Tensor, " number"], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors from one vector, with the names, shapes and dtypes of others."""
    parts = flat.split([tensor.numel() for tensor in like.values()])
    return {name: part.view_as(like[name]).to(like[name].dtype) for name, part in zip(like, parts, strict=False)}


def choose_delay(device: torch.device) -> int:
    """Return 1 for a GPU, which then always has a step to compute, and 0 for a CPU, which computes at once."""
    return int(device.type == "cuda")


def autocast(config: TrainingConfig, device: torch.device) -> torch.autocast:
    """Return the autocast context of a config's precision."""
    precision = choose_precision(config.precision, device.type)
    return torch.autocast(device.type, torch.bfloat16, enabled=precision != "fp32")
