"""Stages that measure the device alone: products of matrices, and steps on a batch that is already there."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch._inductor.config
from torch.profiler import ProfilerActivity

from benchmarks.gpu_run.bench import Bench, time_calls
from c2fmae.core.distributed import World
from c2fmae.core.loop import TrainingState, autocast
from c2fmae.core.model_preparation import prepare_model
from c2fmae.methods import MaskedAutoencoding, build_method
from c2fmae.methods.masked.cost import compute_pretraining_cost
from c2fmae.methods.masked.task import PretrainingTask

Compile = Literal["off", "blocks", "model"]


def measure_ceilings(bench: Bench) -> None:
    """Measure products of matrices, copies, and transfers to the device."""
    side, dtype = (256, torch.float32) if bench.is_cpu else (8192, torch.bfloat16)
    tokens = 512 if bench.is_cpu else 256 * 99
    shapes = {
        "matmul": (side, side, side),
        "matmul of qkv": (tokens, 768, 2304),
        "matmul of proj": (tokens, 768, 768),
        "matmul of fc1": (tokens, 768, 3072),
        "matmul of fc2": (tokens, 3072, 768),
        "matmul of fc1's gradient": (768, tokens, 3072),
        "matmul of the decoder's fc1": (2 * tokens, 256, 1024),
        "matmul of the decoder's keys and values": (6 * tokens, 256, 512),
    }
    for name, (rows, inner, columns) in shapes.items():
        a = torch.randn(rows, inner, device=bench.device, dtype=dtype)
        b = torch.randn(inner, columns, device=bench.device, dtype=dtype)
        seconds = time_calls(bench, lambda a=a, b=b: a @ b)[0]  # type: ignore[misc]
        bench.record(name, 2 * rows * inner * columns / seconds / 1e12, "TFLOP/s", f"{rows} × {inner} × {columns}")
    source = torch.randn(1 << (20 if bench.is_cpu else 30), device=bench.device)
    copy = torch.empty_like(source)
    seconds = time_calls(bench, lambda: copy.copy_(source))[0]
    bench.record("copy", 2 * source.nbytes / seconds / 1e12, "TB/s")
    host = torch.empty(40 << 20, dtype=torch.uint8)
    for name, memory in {"pageable": host, "pinned": host if bench.is_cpu else host.pin_memory()}.items():
        seconds = time_calls(bench, lambda memory=memory: memory.to(bench.device, non_blocking=True))[0]  # type: ignore[misc]
        bench.record(f"to the device, {name}", memory.nbytes / max(seconds, 1e-9) / 1e9, "GB/s", "40 MiB")


@dataclass(frozen=True)
class BareStep:
    """A step of the model with inputs and masks that are on the device: only the work of the device."""

    method: MaskedAutoencoding
    run: Callable[[], object]


def build_bare_step(bench: Bench, recipe: str, num_scenes: int, compiled: Compile, *overrides: str) -> BareStep:
    """Return a step of a recipe on random scenes."""
    config = bench.load_config(recipe, *overrides, f"training.compile={compiled}")
    method, world = build_method(config.masked_method, seed=0), World(device=bench.device)
    prepare_model(method.model, config.training, world)
    training = TrainingState.create(method.model.train(), config.training)
    task = PretrainingTask(method, 0, compiled_parts=compiled)
    (inputs,) = task.split(
        bench.draw_scenes(method, num_scenes), num_micro_batches=1, step=0, progress=0.1, world=world
    )
    counts = task.compute_counts(inputs)

    def run() -> None:
        with autocast(config.training, bench.device):
            loss = task.compute_losses(method.model, inputs, counts)
        loss.total.backward()
        training.optimiser.step()
        training.optimiser.zero_grad(set_to_none=True)

    return BareStep(method, run)


def measure_step(
    bench: Bench, recipe: str, num_scenes: int, compiled: Compile, *overrides: str, suffix: str = ""
) -> float:
    """Record the speed of a step under the names of its settings and a suffix, and return its seconds."""
    label = f"{' '.join([recipe, *overrides])}, {compiled}, batch {num_scenes}{suffix}"
    start = time.perf_counter()
    step = build_bare_step(bench, recipe, num_scenes, compiled, *overrides)
    step.run()
    bench.synchronise()
    bench.record(f"{label}: first step", time.perf_counter() - start, "s", "with building and compiling")
    if not bench.is_cpu:
        torch.cuda.reset_peak_memory_stats()
    median, least = time_calls(bench, step.run)
    bench.record(f"{label}: step", median * 1e3, "ms", f"least {least * 1e3:.2f}")
    bench.record(f"{label}: images/s", num_scenes / median, "1/s")
    if peak := bench.find("matmul"):
        flops = 3 * compute_pretraining_cost(step.method.config).flops
        share = flops * num_scenes / median / (peak * 1e12)
        bench.record(f"{label}: of the matmul peak", 100 * share, "%", f"{flops / 1e9:.1f} GFLOP an image")
    if not bench.is_cpu:
        bench.record(f"{label}: memory", torch.cuda.max_memory_allocated() / 2**30, "GiB")
    return median


def measure_eager(bench: Bench) -> None:
    """Measure a step without compilation."""
    measure_step(bench, "c2fmae-b", bench.batch_size, "off")


def measure_blocks(bench: Bench) -> None:
    """Measure a step with compiled blocks and losses."""
    measure_step(bench, "c2fmae-b", bench.batch_size, "blocks")


def measure_model(bench: Bench) -> None:
    """Measure a step whose model and losses are one graph."""
    measure_step(bench, "c2fmae-b", bench.batch_size, "model")


def measure_mae(bench: Bench) -> None:
    """Measure the price of three granularities."""
    compile_settings: tuple[Compile, ...] = ("off", "blocks")
    for compiled in compile_settings:
        seconds = measure_step(bench, "mae-b", bench.batch_size, compiled)
        if milliseconds := bench.find(f"c2fmae-b, {compiled}, batch {bench.batch_size}: step"):
            bench.record(f"c2fmae / mae, {compiled}", milliseconds / 1e3 / seconds, "×", "the paper: 1.3")


def sweep_settings(bench: Bench) -> None:
    """Measure steps of other batches, models and settings."""
    batch, small_batch = bench.batch_size, max(bench.batch_size // 8, 1)
    stream = "training.precision=bf16-stream"
    settings: list[tuple[str, int, Compile, tuple[str, ...]]] = [
        ("c2fmae-b", batch, "blocks", (stream,)),
        ("c2fmae-b", batch, "model", (stream,)),
        ("c2fmae-b", batch, "blocks", ("method.decoder.options.context=visible",)),
        ("c2fmae-b", small_batch, "off", ()),
        ("c2fmae-b", small_batch, "model", ()),
        ("c2fmae-b", 2 * batch, "blocks", ()),
        ("c2fmae-l", batch // 2, "blocks", ()),
        ("c2fmae-h", batch // 4, "blocks", ()),
    ]
    for recipe, num_scenes, compiled, overrides in settings:
        try:
            measure_step(bench, recipe, num_scenes, compiled, *overrides)
        except torch.OutOfMemoryError:
            bench.record(f"{recipe}, {compiled}, batch {num_scenes}: does not fit", float("nan"), "")
    with torch._inductor.config.patch({"triton.cudagraphs": True}):  # what mode="reduce-overhead" sets
        measure_step(bench, "c2fmae-b", small_batch, "model", suffix=", CUDA graphs")


def profile_step(bench: Bench) -> None:
    """Write tables of the time in each kernel."""
    kinds = [ProfilerActivity.CPU, *([] if bench.is_cpu else [ProfilerActivity.CUDA])]
    key = "self_cpu_time_total" if bench.is_cpu else "self_device_time_total"
    num_steps = 1 if bench.is_cpu else 3
    compile_settings: tuple[Compile, ...] = ("off", "blocks")
    for compiled in compile_settings:
        step = build_bare_step(bench, "c2fmae-b", bench.batch_size, compiled)
        for _ in range(1 if bench.is_cpu else 4):
            step.run()
        bench.synchronise()
        with torch.profiler.profile(activities=kinds) as profile:
            for _ in range(num_steps):
                step.run()
            bench.synchronise()
        rows = profile.key_averages()
        total = sum(getattr(row, key) for row in rows) / num_steps / 1e3
        bench.record(f"profile, {compiled}: time in kernels", total, "ms")
        table = rows.table(sort_by=key, row_limit=40, max_name_column_width=90)
        (bench.out / f"profile-{compiled}.txt").write_text(table)
