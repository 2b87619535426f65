"""Tests and loss of segmentation: `python -m benchmarks.bench_segmentation_testing [argmax] [confusion] [loss]`.

Compares the argmax of upsampled logits (150 classes, 2048×2048) with that of all classes at once, the confusion matrix
of an image (150 classes, 512×512) with NumPy's bincount and scikit-learn, and the loss of a batch (16 images, 150
classes, 512×512) with that of the whole batch at once. On a CPU, memory is the growth of the peak resident size of a
process of its own, without the inputs; on a GPU (--device cuda) that of the allocated memory. Ratios are of minima.
"""

import argparse
import multiprocessing
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import confusion_matrix  # type: ignore[import-untyped]
from torch import Tensor

from c2fmae.core.granularity import IGNORE
from c2fmae.eval.confusion import confusion_matrices
from c2fmae.eval.cost.speed_and_memory import make_synchronous, time_in_turn
from c2fmae.models.segmenters.losses import upsampled_cross_entropy
from c2fmae.models.segmenters.upsampling import upsampled_argmax

NUM_CLASSES = 150
ARGMAX_SIZE, LOSS_SIZE = (2048, 2048), (512, 512)
_ROUNDS_FACTOR = {"confusion": 20}  # which takes milliseconds


def draw_logits(batch: int, size: tuple[int, int], device: str) -> Tensor:
    """Return logits at a quarter of a size, as of UPerNet."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, NUM_CLASSES, size[0] // 4, size[1] // 4, generator=generator).to(device)


def draw_ids(batch: int, size: tuple[int, int], *, seed: int = 0) -> Tensor:
    """Return ids in squares of 32 pixels, a thirtieth of them unlabelled, a third of the pixels changed."""
    generator = torch.Generator().manual_seed(seed)
    squares = torch.randint(NUM_CLASSES, (batch, size[0] // 32, size[1] // 32), generator=generator)
    squares[torch.rand(squares.shape, generator=generator) < 1 / 30] = IGNORE
    ids = squares.repeat_interleave(32, dim=1).repeat_interleave(32, dim=2)
    return ids.to(torch.uint8)


def argmax_at_once(logits: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(logits, size, mode="bilinear", align_corners=False)[0].argmax(dim=0).to(torch.uint8)


def loss_at_once(logits: Tensor, ids: Tensor) -> Tensor:
    upsampled = F.interpolate(logits, ids.shape[1:], mode="bilinear", align_corners=False)
    return F.cross_entropy(upsampled, ids.long(), ignore_index=IGNORE, reduction="sum")


def make_argmax_variants(device: str) -> dict[str, Callable[[], Tensor]]:
    logits = draw_logits(1, ARGMAX_SIZE, device)
    return {
        "interpolate, argmax": lambda: argmax_at_once(logits, ARGMAX_SIZE),
        "upsampled_argmax": lambda: upsampled_argmax(logits[0], ARGMAX_SIZE),
    }


def make_loss_variants(device: str, batch: int = 16) -> dict[str, Callable[[], Tensor]]:
    logits, ids = draw_logits(batch, LOSS_SIZE, device).requires_grad_(), draw_ids(batch, LOSS_SIZE).to(device)
    return {
        "interpolate, cross_entropy": lambda: torch.autograd.grad(loss_at_once(logits, ids), logits)[0],
        "upsampled_cross_entropy": lambda: torch.autograd.grad(upsampled_cross_entropy(logits, ids), logits)[0],
    }


def make_confusion_variants(device: str) -> dict[str, Callable[[], object]]:
    truth = draw_ids(1, LOSS_SIZE)
    other = torch.randint(NUM_CLASSES, truth.shape, generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    predicted = torch.where((truth != IGNORE) & (other > 50), truth, other)
    pair = truth.numpy().ravel(), predicted.numpy().ravel()
    device_pair = predicted.to(device), truth.to(device)

    def count_with_numpy() -> object:
        is_labelled = pair[0] != IGNORE
        index = NUM_CLASSES * pair[0][is_labelled].astype(np.int64) + pair[1][is_labelled]
        return np.bincount(index, minlength=NUM_CLASSES**2).reshape(NUM_CLASSES, -1)

    def count_with_sklearn() -> object:
        is_labelled = pair[0] != IGNORE
        return confusion_matrix(pair[0][is_labelled], pair[1][is_labelled], labels=range(NUM_CLASSES))

    return {
        "NumPy's bincount": count_with_numpy,
        "confusion_matrices": lambda: confusion_matrices(*device_pair, NUM_CLASSES)[0].cpu().numpy(),
        "scikit-learn": count_with_sklearn,
    }


VARIANTS: Mapping[str, Callable[[str], Mapping[str, Callable[[], object]]]] = {
    "argmax": make_argmax_variants,
    "confusion": make_confusion_variants,
    "loss": make_loss_variants,
}


def measure_memory(part: str, name: str, device: str, results: "multiprocessing.Queue[int]") -> None:
    """Put the bytes of memory that a variant needs besides its inputs into a queue. Call this in a new process."""
    torch.set_num_threads(1)
    function = VARIANTS[part](device)[name]
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        results.put(torch.cuda.max_memory_allocated() - before)
    else:
        before = _read_peak_rss()
        function()
        results.put(_read_peak_rss() - before)


def _read_peak_rss() -> int:
    """Return the peak resident size in bytes; that of `getrusage` includes the parent's before the start."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


def bench(part: str, device: str, rounds: int) -> None:
    """Print times and memory of the variants of a part, relative to the first."""
    variants = VARIANTS[part](device)
    clock = time.process_time if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    timed = {name: make_synchronous(function, torch.device(device)) for name, function in variants.items()}
    seconds = time_in_turn(timed, rounds=rounds * _ROUNDS_FACTOR.get(part, 1), clock=clock)
    outputs = [torch.as_tensor(function()) for function in variants.values()]
    difference = max((output.double() - outputs[0].double()).abs().max().item() for output in outputs[1:])
    peer = next(iter(variants))
    memory = {name: read_memory(part, name, device) if part != "confusion" else 0 for name in variants}
    print(
        f"\n{part}, largest difference {difference:.2g}\n{'':30s}{'min ms':>10s}{'x peer':>8s}{'MB':>8s}{'x peer':>8s}"
    )
    for name, times in seconds.items():
        time_ratio, memory_ratio = min(times) / min(seconds[peer]), memory[name] / max(memory[peer], 1)
        line = f"{name:30s}{1e3 * min(times):10.2f}{time_ratio:8.2f}"
        print(f"{line}{memory[name] / 1e6:8.0f}{memory_ratio:8.3f}" if part != "confusion" else line, flush=True)


def read_memory(part: str, name: str, device: str) -> int:
    context = multiprocessing.get_context("spawn")
    results: multiprocessing.Queue[int] = context.Queue()
    process = context.Process(target=measure_memory, args=(part, name, device, results))
    process.start()
    value = results.get(timeout=600)
    process.join()
    return value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=[*VARIANTS], help="argmax, confusion, loss")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for part in options.parts:
        bench(part, options.device, options.rounds)


if __name__ == "__main__":
    main()
