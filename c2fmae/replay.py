"""Replay of one step of a run: its samples and masks, and the loss of each sample."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from c2fmae.config.pretrain import PretrainConfig
from c2fmae.core.checkpoint import list_checkpoints, load_checkpoint, step_from_path
from c2fmae.core.compilation import run_eagerly
from c2fmae.core.distributed import single_process
from c2fmae.core.errors import UserError
from c2fmae.core.loop import TrainingState, autocast
from c2fmae.core.run_dir import RunDir
from c2fmae.core.text import format_count
from c2fmae.pretrain import Pretraining, build_pretraining

NUM_SAMPLES_SHOWN = 5
"""Number of samples in the report, those with the largest losses."""


def replay_step(config: PretrainConfig, run_dir: Path, step: int) -> str:
    """Run the forward pass of a step with the nearest earlier checkpoint, and return a report.

    The report lists the samples with the largest losses and the first module whose output is not finite. Samples and
    masks are exactly those of the run, however many processes it had.
    """
    experiment = build_pretraining(config, single_process(config.training.device))
    if not 1 <= step <= experiment.plan.steps:
        raise UserError(
            f"--replay: expected a step from 1 to {experiment.plan.steps}, got {step}. Choose a step of the run"
        )
    checkpoint_step = load_weights_before_step(experiment, RunDir(run_dir), step)
    with experiment.open_batches(step - 1) as batches:
        batch = next(batches)
    progress = experiment.plan.progress(step - 1)
    with autocast(experiment.config.training, experiment.world.device):
        micro_batches = experiment.task.split(
            batch,
            num_micro_batches=experiment.plan.num_micro_batches,
            step=step - 1,
            progress=progress,
            world=experiment.world,
        )
    keys = [key for micro_batch in micro_batches for key in experiment.task.sample_keys(micro_batch)]
    lines = [f"step {step}: {format_count(len(keys), 'sample')}, with the weights after step {checkpoint_step}"]
    lines += ["  (not those of the step itself, which were not saved)"] * (checkpoint_step < step - 1)
    losses, non_finite_modules = compute_sample_losses(experiment, micro_batches)
    totals = {name: values.mean().item() for name, values in losses.items()}
    if totals:
        lines.append("losses: " + ", ".join(f"{name} {value:.4g}" for name, value in totals.items()))
    lines += [f"first output that is not finite: {name}" for name in non_finite_modules]
    if not totals:
        lines.append(f"with {experiment.config.method.kind} a sample has no loss of its own; the samples of the batch:")
        return "\n".join([*lines, *(f"  {key}" for key in keys)])
    worst = (
        torch.stack([*losses.values()])
        .sum(dim=0)
        .nan_to_num(nan=torch.inf)
        .argsort(descending=True)[:NUM_SAMPLES_SHOWN]
    )
    for row in worst.tolist():
        sample_losses = ", ".join(f"{name} {values[row].item():.4g}" for name, values in losses.items())
        lines.append(f"  {keys[row]}: {sample_losses}")
    if all(map(isfinite, totals.values())):
        lines.append("all losses are finite here: the gradients, or the weights of a later step, may not be")
    return "\n".join(lines)


def load_weights_before_step(experiment: Pretraining, run_dir: RunDir, step: int) -> int:
    """Load the newest intact checkpoint before a step, and return its step; 0 if there is none."""
    training = TrainingState.create(experiment.model, experiment.config.training, experiment.teacher)
    for path in reversed(list_checkpoints(run_dir.checkpoints)):
        if (step_from_path(path) or 0) < step:
            with suppress(UserError):  # a damaged one, which `c2fmae doctor` reports
                checkpoint = load_checkpoint(path)
                training.restore(checkpoint.tensors, step=checkpoint.step)
                return checkpoint.step
    return 0


def compute_sample_losses(experiment: Pretraining, micro_batches: Sequence[Any]) -> tuple[dict[str, Tensor], list[str]]:
    """Return the losses of each sample, and the name of the first module whose output is not finite, if any."""
    with (
        torch.no_grad(),
        run_eagerly(),  # hooks that read values cannot be compiled
        collect_non_finite_modules(experiment.method.model) as module_names,
        autocast(experiment.config.training, experiment.world.device),
    ):
        losses = [
            experiment.task.compute_sample_losses(experiment.method.model, micro_batch) for micro_batch in micro_batches
        ]
    return {name: torch.cat([terms[name] for terms in losses]).cpu() for name in losses[0]}, module_names[:1]


@contextmanager
def collect_non_finite_modules(model: nn.Module) -> Iterator[list[str]]:
    """Collect the names of modules whose outputs are not finite, in the order of the forward pass."""
    names: list[str] = []

    def record_if_non_finite(name: str, output: object) -> None:
        if isinstance(output, Tensor) and not output.isfinite().all():
            names.append(name)

    hooks = [
        module.register_forward_hook(lambda _module, _inputs, output, name=name: record_if_non_finite(name, output))
        for name, module in model.named_modules()
        if not any(module.children())
    ]
    try:
        yield names
    finally:
        for hook in hooks:
            hook.remove()
