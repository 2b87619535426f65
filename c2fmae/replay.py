"""A step of a run once more, to see what was in it: its samples, its masks, its losses."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from math import isfinite
from pathlib import Path

import torch
from torch import Tensor, nn

from c2fmae.core.checkpoint import checkpoints_in, load_checkpoint, step_of
from c2fmae.core.distributed import alone
from c2fmae.core.errors import UserError
from c2fmae.core.loop import autocast
from c2fmae.core.run_dir import RunFolder
from c2fmae.methods import MaskedAutoencoding
from c2fmae.methods.task import Part
from c2fmae.pretrain import PretrainConfig, Pretraining, set_up

SHOWN = 5
"""Samples that are named: those with the largest losses."""


def replay(config: PretrainConfig, path: Path, step: int) -> str:
    """Take the batch of a step through the nearest earlier weights, and say which samples and modules stand out.

    Samples and masks are exactly those of the run, however many processes it had.
    """
    it = set_up(config, alone(config.training.device))
    if not 1 <= step <= it.plan.steps:
        raise UserError(f"--replay {step}: the run has steps 1 to {it.plan.steps}")
    weights_of = load_weights_before(it, RunFolder(path), step)
    with it.batches(step - 1) as batches:
        batch = next(batches)
    progress = it.plan.progress(step - 1)
    parts = it.task.split(batch, parts=it.plan.micro_batches, step=step - 1, progress=progress, world=it.world)
    lines = [f"step {step}: {len(batch)} samples, with the weights after step {weights_of}"]
    lines += ["  (the run's own were later ones)"] * (weights_of < step - 1)
    losses, culprits = look_through(it, parts)
    totals = {name: values.mean().item() for name, values in losses.items()}
    lines.append("losses: " + ", ".join(f"{name} {value:.4g}" for name, value in totals.items()))
    lines += [f"not finite first: what {name} puts out" for name in culprits]
    worst = torch.stack([*losses.values()]).sum(dim=0).nan_to_num(nan=torch.inf).argsort(descending=True)[:SHOWN]
    for row in worst.tolist():
        each = ", ".join(f"{name} {values[row].item():.4g}" for name, values in losses.items())
        lines.append(f"  {batch.keys[row]}: {each}")
    if all(map(isfinite, totals.values())):
        lines.append("everything is finite here: what was not may lie in the gradients, or in weights of later steps")
    return "\n".join(lines)


def load_weights_before(it: Pretraining, run: RunFolder, step: int) -> int:
    """Load the newest whole checkpoint from before a step, if there is one, and return its step."""
    for path in reversed(checkpoints_in(run.checkpoints)):
        if (step_of(path) or 0) < step:
            with suppress(UserError):  # a damaged one; `doctor` says so
                checkpoint = load_checkpoint(path)
                it.method.model.load_state_dict(checkpoint.part("model"))
                return checkpoint.step
    return 0


def look_through(it: Pretraining, parts: list[Part]) -> tuple[dict[str, Tensor], list[str]]:
    """Return each sample's losses, and the modules whose outputs were the first that are not finite."""
    found: list[dict[str, Tensor]] = []
    with torch.no_grad(), first_not_finite(it.method.model) as culprits, autocast(it.config.training, it.world.device):
        for part in parts:
            predictions = it.method.model(part.maps, part.masks)
            found += [one_loss(it.method, part, predictions, row) for row in range(len(part.keys))]
    return {name: torch.stack([each[name] for each in found]).cpu() for name in found[0]}, culprits[:1]


def one_loss(method: MaskedAutoencoding, part: Part, predictions: dict[str, Tensor], row: int) -> dict[str, Tensor]:
    """Return the losses of one sample of a part."""
    only = slice(row, row + 1)
    maps = {name: tensor[only] for name, tensor in part.maps.items()}
    predicted = {name: tensor[only] for name, tensor in predictions.items()}
    return method.compare(predicted, maps, part.masks.rows(row, row + 1)).parts


@contextmanager
def first_not_finite(model: nn.Module) -> Iterator[list[str]]:
    """Collect the names of modules in the order in which their outputs are found not to be finite."""
    names: list[str] = []

    def look(name: str, output: object) -> None:
        if isinstance(output, Tensor) and not output.isfinite().all():
            names.append(name)

    hooks = [
        module.register_forward_hook(lambda _module, _given, output, name=name: look(name, output))
        for name, module in model.named_modules()
        if not any(module.children())
    ]
    try:
        yield names
    finally:
        for hook in hooks:
            hook.remove()
