"""Ten minutes on one GPU: what a step costs, what the loop adds, what the data allow, and whether results are equal.

    python -m benchmarks.gpu_run --out RESULTS --seconds 540
    python -m benchmarks.gpu_run --out RESULTS --cpu            # the same code in miniature, to rehearse it

Every stage is a process with a limit of its own, so one that hangs or fails costs only itself. Results are written at
once to results.jsonl, and a table ends the run. Stages come in the order of their worth.
"""

import argparse
import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.profiler import ProfilerActivity

from benchmarks.bench_data import write_tree
from c2fmae.config.pretrain import PretrainConfig
from c2fmae.core.distributed import World
from c2fmae.core.granularity import GRANULARITIES
from c2fmae.core.json_file import read_json, write_json
from c2fmae.core.loop import TrainingLoop, TrainingState, autocast
from c2fmae.core.model_preparation import prepare_model
from c2fmae.core.scene import SceneBatch
from c2fmae.core.sharding import compute_total_norm, gather, shard_model
from c2fmae.core.training import plan_training
from c2fmae.data import open_scenes
from c2fmae.data.encode import TAR_END, encode_tar_member
from c2fmae.data.pack import PackConfig, pack_scenes
from c2fmae.data.stored import StoredScenes
from c2fmae.methods import MaskedAutoencoding, build_method
from c2fmae.methods.masked.cost import compute_pretraining_cost
from c2fmae.methods.masked.task import PretrainingTask
from c2fmae.models.patches import label_stride
from c2fmae.pretrain import build_pretraining, pretrain
from c2fmae.recipes.config import load_recipe

NUM_IMAGES = 1_281_167
TINY = (
    "method.encoder.name=test_vit",
    "method.encoder.depth=2",
    "method.image_size=[64, 64]",
    "method.decoder.options.dim=64",
    "method.decoder.options.num_heads=4",
)
"""Settings of the rehearsal on a CPU: the same wiring in miniature."""

Compile = Literal["off", "blocks", "model"]


@dataclass(frozen=True)
class Bench:
    """The device, and where results and data of all stages are."""

    out: Path
    work: Path
    is_cpu: bool
    stage: str = ""

    @property
    def device(self) -> torch.device:
        """The device that is measured."""
        return torch.device("cpu") if self.is_cpu else torch.device("cuda", 0)

    @property
    def batch_size(self) -> int:
        """The usual number of images in a batch."""
        return 4 if self.is_cpu else 256

    @property
    def num_rounds(self) -> int:
        """How often a call is timed."""
        return 2 if self.is_cpu else 20

    def record(self, name: str, value: float, unit: str, comment: str = "") -> None:
        """Append a result to the file, and print it."""
        row = {"stage": self.stage, "name": name, "value": value, "unit": unit, "comment": comment}
        with (self.out / "results.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(f"  {name}: {value:.6g} {unit} {comment}", flush=True)

    def find(self, name: str) -> float:
        """Return an earlier result; NaN if there is none."""
        path = self.out / "results.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return next((row["value"] for row in reversed(rows) if row["name"] == name), float("nan"))

    def synchronise(self) -> None:
        """Wait for the device."""
        if not self.is_cpu:
            torch.cuda.synchronize()

    def load_config(self, recipe: str, *overrides: str) -> PretrainConfig:
        """Return the config of a recipe, for a thousand steps of the usual batch."""
        length = ("training.steps=1000", "training.warmup_steps=2", f"training.batch_size={self.batch_size}")
        device = f"training.device={self.device.type}"
        precision = "training.precision=bf16"
        return load_recipe(recipe, [*(TINY if self.is_cpu else ()), *length, device, precision, *overrides])

    def draw_scenes(self, method: MaskedAutoencoding, num_scenes: int) -> SceneBatch:
        """Return random scenes in pinned memory: noise for images, and blobs of ids."""
        config, generator = method.config, torch.Generator().manual_seed(0)
        height, width = config.image_size
        stride, maps = label_stride(method.patch_size), dict[str, Tensor]()
        for name in config.granularities:
            channels = config.num_channels(name)
            if GRANULARITIES.get(name).kind == "ids":
                blob_grid = (num_scenes, height // 32, width // 32)
                blobs = torch.randint(0, min(channels, 12), blob_grid, generator=generator, dtype=torch.uint8)
                maps[name] = blobs.repeat_interleave(32 // stride, 1).repeat_interleave(32 // stride, 2)
            else:
                size = (num_scenes, channels, height, width)
                maps[name] = torch.randint(0, 256, size, generator=generator, dtype=torch.uint8)
        keys = tuple(f"scene-{index}" for index in range(num_scenes))
        scenes = SceneBatch(keys, maps, (None,) * num_scenes)
        return scenes if self.is_cpu else scenes.pin_memory()


def time_calls(bench: Bench, call: Callable[[], object], *, num_warmup: int = 5) -> tuple[float, float]:
    """Return the median and the least seconds of a call, on the device's clock."""
    for _ in range(1 if bench.is_cpu else num_warmup):
        call()
    bench.synchronise()
    seconds = []
    for _ in range(bench.num_rounds):
        if bench.is_cpu:
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
        else:
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            call()
            last.record()
            last.synchronize()
            seconds.append(first.elapsed_time(last) / 1e3)
    return statistics.median(seconds), min(seconds)


@dataclass(frozen=True)
class BareStep:
    """A step of the model with inputs and masks that are on the device: only the work of the device."""

    config: PretrainConfig
    method: MaskedAutoencoding
    run: Callable[[], object]


def build_bare_step(
    bench: Bench, recipe: str, num_scenes: int, compiled: Compile, *overrides: str, has_graph: bool = False
) -> BareStep:
    """Return a step of a recipe; `has_graph` also captures it as a CUDA graph."""
    config = bench.load_config(recipe, *overrides, f"training.compile={compiled}")
    method, world = build_method(config.method, seed=0), World(device=bench.device)
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
        training.optimiser.zero_grad(set_to_none=not has_graph)

    return BareStep(config, method, _capture(run) if has_graph and not bench.is_cpu else run)


def _capture(run: Callable[[], object]) -> Callable[[], object]:
    """Return the replay of a CUDA graph of a call."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(5):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def measure_step(
    bench: Bench, recipe: str, num_scenes: int, compiled: Compile, *overrides: str, has_graph: bool = False
) -> float:
    """Record the speed of a step, and return its seconds."""
    label = ", ".join([" ".join([recipe, *overrides]), compiled, f"batch {num_scenes}", *["graph"] * has_graph])
    start = time.perf_counter()
    step = build_bare_step(bench, recipe, num_scenes, compiled, *overrides, has_graph=has_graph)
    step.run()
    bench.synchronise()
    bench.record(f"{label}: first step", time.perf_counter() - start, "s", "with building and compiling")
    if not bench.is_cpu:
        torch.cuda.reset_peak_memory_stats()
    median, least = time_calls(bench, step.run)
    flops = 3 * compute_pretraining_cost(step.method.config).flops
    bench.record(f"{label}: step", median * 1e3, "ms", f"least {least * 1e3:.2f}")
    bench.record(f"{label}: images/s", num_scenes / median, "1/s")
    share = flops * num_scenes / median / (bench.find("matmul") * 1e12)
    bench.record(f"{label}: of the matmul peak", 100 * share, "%", f"{flops / 1e9:.1f} GFLOP an image")
    if not bench.is_cpu:
        bench.record(f"{label}: memory", torch.cuda.max_memory_allocated() / 2**30, "GiB")
    return median


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


def compare_with_cpu(bench: Bench) -> None:
    """Compare masks and a step of the device with those of the CPU, and count what a step of training waits for."""
    num_different, num_compared = 0, 0
    for blend, progress in itertools.product(("topk", "sample", "quota"), (0.05, 0.3, 0.4, 0.5, 0.6, 0.95)):
        config = bench.load_config("c2fmae-b", f"method.masking.options.blend={blend}")
        method = build_method(config.method, seed=0)
        scenes = bench.draw_scenes(method, 64)
        ours, theirs = (
            method.sample_masks(each, progress=progress, generator=method.masking.seed_step(1, 0))
            for each in (scenes, scenes.to(bench.device))
        )
        num_compared += 1
        num_different += not torch.equal(ours.is_masked, theirs.is_masked.cpu())
    bench.record("masks that differ from the CPU's", num_different, f"of {num_compared}", "must be 0")

    config = bench.load_config("c2fmae-b")
    method = build_method(config.method, seed=0)
    scenes = bench.draw_scenes(method, 4)
    exact = _compute_gradients(method, scenes, torch.device("cpu"))
    half = _compute_gradients(method, scenes, bench.device, is_half=True)
    single = _compute_gradients(method, scenes, bench.device)
    for name, other, expected in (("fp32", single, "1e-3"), ("bf16", half, "5e-2")):
        difference = torch.stack([(a - b).norm() for a, b in zip(exact, other, strict=True)]).norm()
        size = torch.stack([gradient.norm() for gradient in exact]).norm()
        bench.record(
            f"gradients in {name}, from the CPU's in fp32", float(difference / size), "", f"expect < {expected}"
        )

    reports = _run_loop(bench, config, delay=int(not bench.is_cpu))
    for _ in range(3):
        next(reports)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if not bench.is_cpu:
            torch.cuda.set_sync_debug_mode("warn")
        next(reports)
        if not bench.is_cpu:
            torch.cuda.set_sync_debug_mode("default")
    places = [f"{Path(each.filename).name}:{each.lineno}" for each in caught if "synchron" in str(each.message)]
    bench.record("synchronisations in a step", len(places), "", ", ".join(places) or "expect 0: results are read late")


def _compute_gradients(
    method: MaskedAutoencoding, scenes: SceneBatch, device: torch.device, *, is_half: bool = False
) -> list[Tensor]:
    method.model.to(device).zero_grad()
    moved = scenes.to(device)
    masks = method.sample_masks(moved, progress=0.1, generator=method.masking.seed_step(0, 0))
    maps = method.prepare_inputs(moved)
    with torch.autocast(device.type, torch.bfloat16, enabled=is_half):
        loss = method.compute_loss(method.model(maps, masks), maps, masks)
    loss.total.backward()
    return [parameter.grad.double().cpu() for parameter in method.model.parameters() if parameter.grad is not None]


def _run_loop(bench: Bench, config: PretrainConfig, *, delay: int) -> Iterator[Any]:
    """Yield the reports of the training loop, with batches as data workers return them."""
    world, method = World(device=bench.device), build_method(config.method, seed=0)
    prepare_model(method.model, config.training, world)
    plan = plan_training(config.training, num_samples=NUM_IMAGES, world_size=1)
    task = PretrainingTask(method, 0, compiled_parts=config.training.choose_compiled_parts(bench.device.type))
    scenes = bench.draw_scenes(method, bench.batch_size)
    masked = task.masker.mask(scenes, num_micro_batches=1, step=0, progress=0.1, world=world)
    batch = masked if bench.is_cpu else [each.pin_memory() for each in masked]
    training = TrainingState.create(method.model, config.training)
    loop = TrainingLoop(task, config.training, plan, world, delay=delay)
    return loop.run(training, itertools.repeat(batch))


def measure_loop(bench: Bench) -> None:
    """Measure what the training loop adds to the step of the model: at once, and with results one step late."""
    for compiled, delay in itertools.product(("off", "blocks"), (0, 1)):
        reports = _run_loop(bench, bench.load_config("c2fmae-b", f"training.compile={compiled}"), delay=delay)
        for _ in range(2 if bench.is_cpu else 10):
            next(reports)
        seconds = []
        for _ in range(bench.num_rounds + 10 * (not bench.is_cpu)):
            start = time.perf_counter()
            next(reports)
            seconds.append(time.perf_counter() - start)
        label = f"loop, {compiled}, results {delay} steps late: step"
        bench.record(label, statistics.median(seconds) * 1e3, "ms", f"least {min(seconds) * 1e3:.2f}; host clock")


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
    for compiled in ("off", "blocks"):
        seconds = measure_step(bench, "mae-b", bench.batch_size, compiled)
        ours = bench.find(f"c2fmae-b, {compiled}, batch {bench.batch_size}: step") / 1e3
        bench.record(f"c2fmae / mae, {compiled}", ours / seconds, "×", "the paper: 1.3")


def write_pack(bench: Bench) -> None:
    """Write a pack as `data pack --short-side 256` does, of images with the number of bytes of ImageNet's."""
    root = bench.work / "pack"
    if (root / "done").exists():
        return
    write_tree(root / "tree")
    pack_scenes(open_scenes(root / "tree"), root / "small", PackConfig(label_stride=4, short_side=256))
    source, large = open_scenes(root / "small"), root / "large"
    assert isinstance(source, StoredScenes)
    large.mkdir()
    info = read_json(root / "small/dataset.json", fix="Write it again")
    info["classes"] += [{"name": f"class {index}"} for index in range(len(info["classes"]), 133)]  # as many as COCO's
    write_json(large / "dataset.json", info)
    suffixes = {"rgb": "jpg", "semantic": "semantic.png", "instance": "instance.png"}
    for shard in range(4):
        with (large / f"large-{shard:06d}.tar").open("wb") as file:
            for number in range(16 if bench.is_cpu else 4096):
                for name, content in source.read_map_bytes(number % len(source)).items():
                    file.write(encode_tar_member(f"{shard}-{number:07d}.{suffixes[name]}", content))
            file.write(TAR_END)
    start = time.perf_counter()
    scenes = open_scenes(f"{large}/*.tar")
    bench.record("opening and indexing", time.perf_counter() - start, "s", f"{len(scenes)} samples")
    (root / "done").touch()


def measure_run(bench: Bench, name: str = "pretrain", *overrides: str) -> None:
    """Measure pre-training as a whole, on the pack."""
    num_steps = 6 if bench.is_cpu else 90
    config = bench.load_config(
        "c2fmae-b",
        f"data.train={bench.work}/pack/large/*.tar",
        f"data.workers={0 if bench.is_cpu else max((os.cpu_count() or 4) - 2, 1)}",
        f"training.steps={num_steps}",
        "watching.log_every=1",
        "watching.figures=0",
        *overrides,
    )
    out, start = bench.work / name.replace(" ", "-"), time.perf_counter()
    print(pretrain(config, out))
    rows = [json.loads(line) for line in (out / "timing.jsonl").read_text().splitlines()][num_steps // 3 :]
    for column, key, factor, unit in (
        ("samples/s", "samples_per_second", 1, "1/s"),
        ("waited for data", "waited", 100, "%"),
        ("step", "seconds", 1e3, "ms"),
    ):
        bench.record(f"{name}: {column}", factor * statistics.median(row[key] for row in rows), unit)
    bench.record(f"{name}: in total", time.perf_counter() - start, "s", f"{num_steps} steps, a checkpoint, a page")


def measure_run_without_compilation(bench: Bench) -> None:
    """Measure pre-training as a whole, without compilation."""
    measure_run(bench, "pretrain, off", "training.compile=off")


def run_distributed(bench: Bench) -> None:
    """Run DDP and FSDP2 with the communication library of the device, in a single process: their losses must agree."""
    backend = "gloo" if bench.is_cpu else "cpu:gloo,cuda:nccl"
    store = dist.HashStore()  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=store, rank=0, world_size=1)
    try:
        small = () if bench.is_cpu else ("method.encoder.name=vit_small_patch16_224",)
        for is_sharded, compiled, has_checkpointing in (
            (False, "off", False),
            (False, "blocks", False),
            (False, "blocks", True),
            (True, "off", False),
            (True, "blocks", False),
        ):
            checkpointing = f"method.encoder.grad_checkpointing={str(has_checkpointing).lower()}"
            config = bench.load_config("c2fmae-b", *small, checkpointing, f"training.compile={compiled}")
            method = build_method(config.method, seed=0)
            prepare_model(method.model, config.training, World(device=bench.device))
            if is_sharded:
                shard_model(method.model, bench.device, 1)
            model = method.model.train()
            if not is_sharded:
                model = torch.nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
            scenes = bench.draw_scenes(method, 4 if bench.is_cpu else 64).to(bench.device)
            masks = method.sample_masks(scenes, progress=0.1, generator=method.masking.seed_step(0, 0))
            maps = method.prepare_inputs(scenes)
            with autocast(config.training, bench.device):
                loss = method.compute_loss(model(maps, masks), maps, masks).total
            loss.backward()
            norm = compute_total_norm(p.grad for p in method.model.parameters() if p.grad is not None)
            gather(method.model.state_dict())
            parts = ["FSDP2" if is_sharded else "DDP", compiled, *["checkpointing"] * has_checkpointing]
            bench.record(f"{', '.join(parts)}: loss", float(loss.detach()), "", f"gradient norm {float(norm):.5g}")
        counts = torch.ones(11, device=bench.device, dtype=torch.int64)
        bench.record("all-reduce of counts", time_calls(bench, lambda: dist.all_reduce(counts))[0] * 1e6, "µs")
    finally:
        dist.destroy_process_group()


def measure_data(bench: Bench) -> None:
    """Measure the batches per second of data workers, masks included."""
    for num_workers in (0,) if bench.is_cpu else (1, 8, max((os.cpu_count() or 4) - 1, 1)):
        config = bench.load_config(
            "c2fmae-b", f"data.train={bench.work}/pack/large/*.tar", f"data.workers={num_workers}"
        )
        experiment = build_pretraining(config, World(device=bench.device))
        with experiment.open_batches(0) as batches:
            for _ in range(2 * num_workers + 1):
                next(batches)
            start, num_batches = time.perf_counter(), 2 if bench.is_cpu else 4 + 4 * num_workers
            for _ in range(num_batches):
                next(batches)
            speed = num_batches * bench.batch_size / (time.perf_counter() - start)
        bench.record(f"data, {num_workers} workers", speed, "1/s")


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


def sweep_settings(bench: Bench) -> None:
    """Measure steps of other batches, models and settings."""
    batch = bench.batch_size
    stream = "training.precision=bf16-stream"
    settings: list[tuple[str, int, Compile, tuple[str, ...], bool]] = [
        ("c2fmae-b", batch, "blocks", (stream,), False),
        ("c2fmae-b", batch, "model", (stream,), False),
        ("c2fmae-b", batch, "blocks", ("method.decoder.options.context=visible",), False),
        ("c2fmae-b", batch // 8 or 2, "model", (), True),
        ("c2fmae-b", batch // 8 or 2, "off", (), False),
        ("c2fmae-b", 2 * batch, "blocks", (), False),
        ("c2fmae-l", batch // 2, "blocks", (), False),
        ("c2fmae-h", batch // 4, "blocks", (), False),
    ]
    for recipe, num_scenes, compiled, overrides, has_graph in settings:
        try:
            measure_step(bench, recipe, num_scenes, compiled, *overrides, has_graph=has_graph)
        except torch.cuda.OutOfMemoryError:
            bench.record(f"{recipe}, {compiled}, batch {num_scenes}: does not fit", float("nan"), "")


@dataclass(frozen=True)
class Stage:
    """A stage, its limit, and the seconds that must be left to start it."""

    run: Callable[[Bench], None]
    limit: float
    least: float


STAGES: Mapping[str, Stage] = {
    "ceilings": Stage(measure_ceilings, 45, 20),
    "parity": Stage(compare_with_cpu, 90, 40),
    "eager": Stage(measure_eager, 70, 40),
    "loop": Stage(measure_loop, 100, 60),
    "pack": Stage(write_pack, 60, 30),
    "run": Stage(measure_run, 120, 80),
    "blocks": Stage(measure_blocks, 90, 60),
    "mae": Stage(measure_mae, 120, 60),
    "ddp": Stage(run_distributed, 120, 60),
    "run-off": Stage(measure_run_without_compilation, 90, 60),
    "data": Stage(measure_data, 60, 40),
    "profile": Stage(profile_step, 90, 60),
    "model": Stage(measure_model, 150, 90),
    "sweep": Stage(sweep_settings, 300, 60),
}


def run_stages(bench: Bench, names: list[str], seconds: float) -> None:
    """Run stages one after the other, each in a process of its own, and print a table of all results."""
    start = time.perf_counter()
    for name in names:
        stage, left = STAGES[name], seconds - (time.perf_counter() - start)
        if left < stage.least and not bench.is_cpu:
            print(f"{name}: skipped, {left:.0f} s are left", flush=True)
            continue
        print(f"{name} ({left:.0f} s left)", flush=True)
        command = [sys.executable, "-m", "benchmarks.gpu_run", "--out", str(bench.out), "--work", str(bench.work)]
        command += ["--stage", name, *["--cpu"] * bench.is_cpu]
        failure: object = None
        try:
            limit = None if bench.is_cpu else min(stage.limit, max(left - 5, 1))
            failure = subprocess.run(command, timeout=limit, check=False).returncode or None
        except subprocess.TimeoutExpired:
            failure = "time limit"
        if failure is not None:
            Bench(bench.out, bench.work, bench.is_cpu, name).record(f"{name}: FAILED", float("nan"), "", str(failure))
    print()
    for line in (bench.out / "results.jsonl").read_text().splitlines():
        row = json.loads(line)
        print(f"{row['stage']:10s}{row['name']:72s}{row['value']:12.5g} {row['unit']:8s}{row['comment']}")


def rehearse_compilation() -> None:
    """Compile without generating code, which takes minutes on a CPU."""
    original = torch.compile

    def compile_without_code(*arguments: Any, **options: Any) -> Any:
        return original(*arguments, **{**options, "backend": "aot_eager"})

    torch.compile = compile_without_code


def main() -> None:
    """Run all stages, or the one of this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="directory of results")
    parser.add_argument("--work", type=Path, help="directory of data and runs; by default within that of results")
    parser.add_argument("--seconds", type=float, default=540)
    parser.add_argument("--cpu", action="store_true", help="rehearse in miniature")
    parser.add_argument("--only", nargs="*", choices=STAGES, default=list(STAGES))
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    work = options.work or options.out / "work"
    for folder in (options.out, work):
        folder.mkdir(parents=True, exist_ok=True)
    bench = Bench(options.out, work, options.cpu, options.stage or "")
    if options.stage is None:
        run_stages(bench, options.only, options.seconds)
        return
    torch.manual_seed(0)
    if options.cpu:
        torch.set_num_threads(1)
        rehearse_compilation()
    with contextlib.suppress(KeyboardInterrupt):
        STAGES[options.stage].run(bench)


if __name__ == "__main__":
    main()
