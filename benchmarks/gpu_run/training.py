"""Stages that measure training: the loop, the data, and a run as a whole."""

import itertools
import json
import os
import statistics
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.bench_data import write_tree
from benchmarks.gpu_run.bench import Bench
from c2fmae.config.pretrain import PretrainConfig
from c2fmae.core.distributed import World
from c2fmae.core.json_file import read_json, write_json
from c2fmae.core.loop import TrainingLoop, TrainingState
from c2fmae.core.model_preparation import prepare_model
from c2fmae.core.training import plan_training
from c2fmae.data import open_scenes
from c2fmae.data.encode import TAR_END, encode_tar_member
from c2fmae.data.pack import PackConfig, pack_scenes
from c2fmae.data.stored import StoredScenes
from c2fmae.methods import build_method
from c2fmae.methods.masked.task import PretrainingTask
from c2fmae.pretrain import build_pretraining, pretrain

NUM_IMAGES = 1_281_167


def run_loop(bench: Bench, config: PretrainConfig, *, delay: int) -> Iterator[Any]:
    """Yield the reports of the training loop, with batches as data workers return them."""
    world, method = World(device=bench.device), build_method(config.masked_method, seed=0)
    prepare_model(method.model, config.training, world)
    plan = plan_training(config.training, num_samples=NUM_IMAGES, world_size=1)
    task = PretrainingTask(method, 0, compiled_parts=config.training.choose_compiled_parts(bench.device.type))
    scenes = bench.draw_scenes(method, bench.batch_size)
    masked = task.preparer.prepare(scenes, num_micro_batches=1, step=0, progress=0.1, world=world)
    batch = masked if bench.is_cpu else [each.pin_memory() for each in masked]
    training = TrainingState.create(method.model, config.training)
    loop = TrainingLoop(task, config.training, plan, world, delay=delay)
    return loop.run(training, itertools.repeat(batch))


def measure_loop(bench: Bench) -> None:
    """Measure what the training loop adds to the step of the model: at once, and with results one step late."""
    for compiled, delay in itertools.product(("off", "blocks"), (0, 1)):
        reports = run_loop(bench, bench.load_config("c2fmae-b", f"training.compile={compiled}"), delay=delay)
        for _ in range(2 if bench.is_cpu else 10):
            next(reports)
        seconds = []
        for _ in range(bench.num_rounds + 10 * (not bench.is_cpu)):
            start = time.perf_counter()
            next(reports)
            seconds.append(time.perf_counter() - start)
        label = f"loop, {compiled}, results {delay} steps late: step"
        bench.record(label, statistics.median(seconds) * 1e3, "ms", f"least {min(seconds) * 1e3:.2f}; host clock")


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
