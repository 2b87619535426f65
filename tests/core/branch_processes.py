"""A tiny task with a teacher, a loss over the global batch and a centre, and one rank of two that trains it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as distributed_functional
import torch.nn.functional as F
from torch import Tensor, nn

from c2fmae.core.distributed import World, gather_rows, gather_rows_with_gradient, sum_over_ranks
from c2fmae.core.loop import StepLoss, StepReport, TrainingLoop, TrainingState
from c2fmae.core.training import TrainingConfig, plan_training

StepHistory = tuple[list[StepReport], list[dict[str, Tensor]]]
"""The report of each step, and all tensors after it."""

WORLD_SIZE, BATCH_SIZE, NUM_STEPS = 2, 8, 5
SINGLE_PROCESS = World()


class Branch(nn.Module):
    """An encoder with a projector, whose outputs may be normalised by the moments of the global batch."""

    def __init__(self, *, is_normed: bool = False, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.is_normed = is_normed
        self.encoder, self.projector = nn.Linear(6, 5, dtype=dtype), nn.Linear(5, 4, bias=False, dtype=dtype)

    def forward(self, rows: Tensor) -> Tensor:
        outputs: Tensor = self.projector(torch.tanh(self.encoder(rows)))
        if self.is_normed:
            count = sum_over_ranks(torch.ones_like(outputs[:, 0]).sum())
            outputs = outputs - sum_over_ranks(outputs.sum(dim=0)) / count
            outputs = outputs / (sum_over_ranks(outputs.square().sum(dim=0)) / count + 1e-3).sqrt()
        return F.normalize(outputs, dim=1)


class Student(Branch):
    """A branch with a predictor, and a moving average of keys."""

    centre: Tensor

    def __init__(self, *, is_normed: bool = False, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(is_normed=is_normed, dtype=dtype)
        self.predictor = nn.Linear(4, 4, dtype=dtype)
        self.register_buffer("centre", torch.zeros(4, dtype=dtype))

    def forward(self, rows: Tensor) -> Tensor:
        return F.normalize(self.predictor(super().forward(rows)), dim=1)


@dataclass(frozen=True)
class Pairs:
    """Two views of some rows, and the keys of the global batch, which the teacher made from second views."""

    views: Tensor
    keys: Tensor | None
    first: int
    """Index of the first row in the global batch."""


@dataclass(frozen=True)
class BranchTask:
    """Contrast between the outputs for first views and keys: outputs of the teacher, or of the student itself."""

    student: Student
    teacher: Branch | None = None
    num_held_steps: int = 0
    """Number of first steps in which the predictor is held."""
    infinite_sums_at: int | None = None
    """A step whose sums, but not its losses, are infinite."""

    def split(self, batch: Tensor, *, num_micro_batches: int, step: int, progress: float, world: World) -> list[Pairs]:
        """Compute and gather the keys of the teacher, then split the batch."""
        keys = None
        if self.teacher is not None:
            with torch.no_grad():
                keys = gather_rows(self.teacher(batch[:, 1]))
                keys = keys * (torch.inf if step == self.infinite_sums_at else 1)
        parts = batch.chunk(num_micro_batches)
        size = len(parts[0])
        return [Pairs(part, keys, world.rank * len(batch) + index * size) for index, part in enumerate(parts)]

    def compute_counts(self, micro_batch: Pairs) -> Mapping[str, Tensor]:
        """Return the number of rows."""
        return {"rows": torch.tensor(len(micro_batch.views))}

    def summarise_counts(self, counts: Mapping[str, int], progress: float) -> Mapping[str, float]:
        """Return the number of rows."""
        return counts

    def compute_losses(self, model: nn.Module, micro_batch: Pairs, counts: Mapping[str, Tensor]) -> StepLoss:
        """Return the cross-entropy of each first view's own second view among all."""
        queries, keys = micro_batch.views[:, 0], micro_batch.keys
        if keys is None:
            queries, own_keys = model(micro_batch.views.transpose(0, 1).flatten(0, 1)).chunk(2)
            keys = gather_rows_with_gradient(own_keys)
        else:
            queries = model(queries)
        positives = micro_batch.first + torch.arange(len(queries))
        logits = queries @ (keys.nan_to_num(posinf=0, neginf=0) - self.student.centre).T / 0.2
        total = F.cross_entropy(logits, positives, reduction="sum") / counts["rows"]
        hits = (logits.argmax(dim=1) == positives).sum() / counts["rows"]
        sums = {"keys": keys[positives].detach().sum(dim=0), "rows": total.new_tensor(len(queries))}
        return StepLoss(total, {"contrast": total.detach()}, {"accuracy": hits}, sums)

    def sample_keys(self, micro_batch: Pairs) -> list[str]:
        """Return the indices of the rows."""
        return [str(micro_batch.first + index) for index in range(len(micro_batch.views))]

    def teacher_momentum(self, step: int) -> float:
        """Return a momentum that increases."""
        return 0.5 + 0.1 * step

    def held_parameters(self, step: int) -> list[nn.Parameter]:
        """Return the predictor's parameters in the first steps."""
        return list(self.student.predictor.parameters()) if step < self.num_held_steps else []

    def update_state(self, model: nn.Module, sums: Mapping[str, Tensor], condition: Tensor) -> None:
        """Move the centre towards the mean key."""
        assert model is self.student
        centre = 0.9 * self.student.centre + 0.1 * sums["keys"] / sums["rows"]
        self.student.centre.copy_(torch.where(condition, centre, self.student.centre))


@dataclass(frozen=True)
class BranchCase:
    """One way to train the task."""

    has_teacher: bool = True
    is_normed: bool = False
    num_micro_batches: int = 1
    """Micro-batches of a rank."""
    nan_at: int | None = None
    """A step with a row that is NaN."""
    infinite_sums_at: int | None = None
    num_held_steps: int = 0
    delay: int = 0
    dtype: torch.dtype = torch.float64

    def build(self, world: World = SINGLE_PROCESS, **settings: Any) -> tuple[TrainingState, BranchTask, Any]:
        """Return the state before the first step, the task, and its loop."""
        torch.manual_seed(0)
        student = Student(is_normed=self.is_normed, dtype=self.dtype)
        teacher = Branch(is_normed=self.is_normed, dtype=self.dtype) if self.has_teacher else None
        micro_batch = BATCH_SIZE // world.size // self.num_micro_batches
        defaults = {"steps": NUM_STEPS, "lr": 0.05, "precision": "fp32", "warmup_steps": 1}
        config = TrainingConfig(**defaults | settings, batch_size=BATCH_SIZE, micro_batch=micro_batch)
        plan = plan_training(config, num_samples=2 * BATCH_SIZE, world_size=world.size)
        task = BranchTask(student, teacher, self.num_held_steps, self.infinite_sums_at)
        training = TrainingState.create(student, config, teacher)
        return training, task, TrainingLoop(task, config, plan, world, self.delay)

    def draw_batches(self, world: World = SINGLE_PROCESS) -> Iterator[Tensor]:
        """Yield the rows of a rank."""
        size = BATCH_SIZE // world.size
        for step in range(NUM_STEPS):
            rows = torch.randn(BATCH_SIZE, 1, 6, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
            views = rows + 0.3 * torch.randn(BATCH_SIZE, 2, 6, generator=torch.Generator().manual_seed(100 + step))
            if step == self.nan_at:
                views[-1] = torch.nan
            yield views[world.rank * size : (world.rank + 1) * size].to(self.dtype)

    def run(self, world: World = SINGLE_PROCESS, **settings: Any) -> StepHistory:
        """Train; return the report of each step, and all tensors when it is yielded."""
        training, _, loop = self.build(world, **settings)
        reports, tensors = list[StepReport](), list[dict[str, Tensor]]()
        for report in loop.run(training, self.draw_batches(world)):
            reports.append(report)
            tensors.append({name: tensor.detach().clone() for name, tensor in training.gather_tensors().items()})
        return reports, tensors


SHARED_CASES = (
    BranchCase(num_micro_batches=2),
    BranchCase(is_normed=True),
    BranchCase(has_teacher=False),
    BranchCase(has_teacher=False, is_normed=True),
)
"""Cases in which two ranks compute the same as one process."""
NAN_CASE = BranchCase(nan_at=2, num_micro_batches=2)


def compare_collectives(rank: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Return results and gradients of collectives, each with that of torch's own differentiable collective."""
    generator = torch.Generator().manual_seed(rank)
    rows = torch.randn(3, 2, generator=generator, dtype=torch.float64)
    weights = torch.randn(WORLD_SIZE, 3, 2, generator=generator, dtype=torch.float64)  # of this rank's loss
    found = dict[str, tuple[Tensor, Tensor]]()
    for name, ours, theirs, factor in (
        ("gather", gather_rows_with_gradient, lambda x: torch.cat(distributed_functional.all_gather(x)), weights),
        ("sum", sum_over_ranks, distributed_functional.all_reduce, weights[:1]),
    ):
        results = []
        for collective in (ours, theirs):
            leaf = rows.clone().requires_grad_()
            output = collective(leaf.t().contiguous().t())  # of another layout
            (output * factor.flatten(0, 1)).square().sum().backward()
            assert leaf.grad is not None
            results.append((output.detach(), leaf.grad))
        (our_output, our_gradient), (output, gradient) = results
        found |= {name: (our_output, output), f"gradient of {name}": (our_gradient, gradient)}
    plain = gather_rows(rows.requires_grad_())
    assert not plain.requires_grad
    assert torch.equal(plain, found["gather"][0])
    return found


def send_buffers(world: World) -> list[float]:
    """Return a buffer of this rank, and a running statistic, after a forward pass; both were the rank before."""
    values = []
    for model, name in ((Student(), "centre"), (nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)), "1.running_mean")):
        wrapped = world.wrap_ddp(model.eval())
        model.get_buffer(name).fill_(world.rank)
        wrapped(torch.ones(1, 6))
        values.append(model.get_buffer(name)[0].item())
    return values


def run_rank(rank: int, folder: Path) -> None:
    """Do all work of one rank, and write its results to a file."""
    store = dist.FileStore(str(folder / "store"), WORLD_SIZE)  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD_SIZE, timeout=timedelta(seconds=60))
    world = World(rank, WORLD_SIZE)
    histories = [case.run(world, clip_each=0.1) for case in (*SHARED_CASES, NAN_CASE)]
    runs = [([vars(report) for report in reports], tensors) for reports, tensors in histories]
    torch.save((runs, compare_collectives(rank), send_buffers(world)), folder / f"{rank}.pt")
    dist.destroy_process_group()
