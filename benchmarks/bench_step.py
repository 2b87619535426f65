"""Time and memory of a pre-training step, compared with other implementations: `python -m benchmarks.bench_step`.

ViT-B/16 at 224 px: standardisation, masks, forward, backward and AdamW, for all variants. Each section runs in
a process of its own, in which variants take turns. `benchmarks.gpu_run` measures a GPU.
"""

import argparse
import dataclasses
import functools
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from benchmarks.multimae_baseline import MultiMaeBaseline
from benchmarks.tables import print_costs
from c2fmae.config.masked_method import MaskedConfig
from c2fmae.core.masks import Masks
from c2fmae.core.pixels import standardise
from c2fmae.core.scene import SceneBatch
from c2fmae.core.specs import IMAGENET_MEAN, IMAGENET_STD
from c2fmae.data import CentralView, open_scenes
from c2fmae.eval.cost.speed_and_memory import measure_peak_bytes, time_in_turn
from c2fmae.methods import METHODS, MaskedAutoencoding, build_method

BATCH, SIZE, PROGRESS = 8, 224, 0.5
BASELINE, DENSE_BASELINE, VITMAE = "MultiMAE", "MultiMAE, all context", "transformers' ViTMAE"
METHOD_OVERRIDES = {
    "c2fmae": ("c2fmae", ()),
    "c2fmae, context=visible": ("c2fmae", ("decoder.options.context=visible",)),
    "parallel, context=all": ("c2fmae", ("decoder.name=parallel",)),
    "mae": ("mae", ()),
}
INDEXING = {f"aten::{name}" for name in ("index", "index_copy", "index_select", "gather", "scatter", "scatter_add")}


class TimedModel(Protocol):
    model: nn.Module

    def compute_step_loss(self, scenes: SceneBatch) -> Tensor: ...


class StagedModel(TimedModel, Protocol):
    """A loss whose stages can be timed separately."""

    def prepare_inputs(self, scenes: SceneBatch) -> dict[str, Tensor]: ...
    def sample_masks(self, scenes: SceneBatch) -> Any: ...
    def compute_loss(self, predictions: Mapping[str, Tensor], maps: Mapping[str, Tensor], masks: Any) -> Tensor: ...


class TimedMethod:
    def __init__(self, config: MaskedConfig, *, is_compiled: bool = False) -> None:
        method = build_method(config)
        self.model = method.model
        compiled = cast(nn.Module, torch.compile(method.model, fullgraph=True)) if is_compiled else method.model
        self.method: MaskedAutoencoding = dataclasses.replace(method, model=compiled)
        self.generator = torch.Generator().manual_seed(0)

    def prepare_inputs(self, scenes: SceneBatch) -> dict[str, Tensor]:
        return self.method.prepare_inputs(scenes)

    def sample_masks(self, scenes: SceneBatch) -> Masks:
        return self.method.sample_masks(scenes, progress=PROGRESS, generator=self.generator)

    def compute_loss(self, predictions: Mapping[str, Tensor], maps: Mapping[str, Tensor], masks: Masks) -> Tensor:
        return self.method.compute_loss(predictions, maps, masks).total

    def compute_step_loss(self, scenes: SceneBatch) -> Tensor:
        return self.method.compute_step_loss(scenes, progress=PROGRESS, generator=self.generator).total


class TransformersViTMAE:
    def __init__(self) -> None:
        from transformers import ViTMAEConfig, ViTMAEForPreTraining

        config = ViTMAEConfig(norm_pix_loss=True, attn_implementation="eager")  # type: ignore[call-arg]
        self.model: nn.Module = ViTMAEForPreTraining(config)
        self.mean, self.std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)

    def compute_step_loss(self, scenes: SceneBatch) -> Tensor:
        images = standardise(scenes.maps["rgb"], self.mean, self.std)
        return self.model(pixel_values=images).loss  # type: ignore[no-any-return]


@dataclass
class TimedTrainer:
    """A loss with its optimiser: a training step."""

    timed_model: TimedModel
    is_bf16: bool = True
    optimizer: torch.optim.Optimizer = field(init=False)

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.AdamW(self.timed_model.model.parameters(), lr=1e-4, betas=(0.9, 0.95), fused=True)

    def autocast(self, scenes: SceneBatch) -> torch.autocast:
        return torch.autocast(scenes.maps["rgb"].device.type, torch.bfloat16, enabled=self.is_bf16)

    def step(self, scenes: SceneBatch) -> None:
        with self.autocast(scenes):
            total = self.timed_model.compute_step_loss(scenes)
        total.backward()
        self.update()

    def update(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def draw_scene_batch(batch: int, size: int = SIZE) -> SceneBatch:
    """Return generated scenes; a batch of more than 32 repeats the first 32."""
    source = open_scenes("generated", size=size, length=min(batch, 32))
    view = CentralView(size=(size, size), label_stride=4)
    scenes = [view(source[index]) for index in range(len(source))]
    return SceneBatch.stack([scenes[index % len(scenes)] for index in range(batch)])


def build_timed_method(name: str, *, is_compiled: bool = False) -> TimedMethod:
    method, overrides = METHOD_OVERRIDES[name]
    return TimedMethod(METHODS.get(method)().override(list(overrides)), is_compiled=is_compiled)


VARIANTS: dict[str, Callable[[], TimedModel]] = {
    **{name: functools.partial(build_timed_method, name) for name in METHOD_OVERRIDES},
    BASELINE: MultiMaeBaseline,
    DENSE_BASELINE: functools.partial(MultiMaeBaseline, is_dense=True),
    VITMAE: TransformersViTMAE,
}


def compare_with_peers(
    title: str, variants: Mapping[str, Callable[[], TimedModel]], peers: Sequence[str], rounds: int, *, is_bf16: bool
) -> None:
    scenes = draw_scene_batch(BATCH)
    trainers = {name: TimedTrainer(make(), is_bf16) for name, make in variants.items()}
    steps = {name: functools.partial(trainer.step, scenes) for name, trainer in trainers.items()}
    print_costs(title, time_in_turn(steps, rounds=rounds), peers=peers, samples=BATCH)


def bench_fp32(rounds: int) -> None:
    compare_with_peers("A step in float32", VARIANTS, (BASELINE, VITMAE), rounds, is_bf16=False)


def bench_bf16(rounds: int) -> None:
    compare_with_peers("A step in bfloat16", VARIANTS, (BASELINE, VITMAE), rounds, is_bf16=True)


def bench_compiled(rounds: int) -> None:
    variants: dict[str, Callable[[], TimedModel]] = {
        f"{name}, compiled": functools.partial(build_timed_method, name, is_compiled=True)
        for name in ("c2fmae", "c2fmae, context=visible")
    }
    variants[f"{BASELINE}, compiled"] = functools.partial(MultiMaeBaseline, is_compiled=True)
    variants |= {name: VARIANTS[name] for name in ("c2fmae", BASELINE)}
    peers = (f"{BASELINE}, compiled", BASELINE)
    compare_with_peers("A step in bfloat16, models compiled", variants, peers, rounds, is_bf16=True)


def bench_step_memory(rounds: int) -> None:  # noqa: ARG001 - memory does not vary
    """Print the peak memory of a step besides weights and moments, which are three times the parameters."""
    scenes = draw_scene_batch(BATCH)
    print(f"\nPeak memory of a step, MiB\n{'':30s}{'weights, moments':>18s}{'float32':>12s}{'bfloat16':>12s}")
    for name, make in VARIANTS.items():
        timed_model = make()
        state = 3 * sum(p.numel() * p.element_size() for p in timed_model.model.parameters())
        peaks = [
            measure_peak_bytes(functools.partial(TimedTrainer(timed_model, is_bf16).step, scenes))
            for is_bf16 in (False, True)
        ]
        print(f"{name:30s}{state / 2**20:18.0f}{peaks[0] / 2**20:12.0f}{peaks[1] / 2**20:12.0f}", flush=True)


def bench_scaling(rounds: int) -> None:
    """Print the time of steps with more visible tokens, larger batches and larger images."""
    timed_method, scenes = (
        build_timed_method("c2fmae"),
        {(n, SIZE): draw_scene_batch(n) for n in (4, 8, 16, 32)} | {(8, 384): draw_scene_batch(8, 384)},
    )
    trainer, method = TimedTrainer(timed_method), timed_method.method

    def step(batch: int, size: int, num_visible: int | None) -> None:
        config = method.config.model_copy(update={"num_visible": num_visible})
        timed_method.method = dataclasses.replace(method, config=config)
        trainer.step(scenes[batch, size])

    cases = [(8, SIZE, None), (8, SIZE, 147), (8, SIZE, 196), (4, SIZE, None), (16, SIZE, None), (32, SIZE, None)]
    cases.append((8, 384, None))
    seconds = time_in_turn({str(case): functools.partial(step, *case) for case in cases}, rounds=rounds)
    print("\nA step of c2fmae in bfloat16")
    print(f"{'batch':>5s}{'size':>6s}{'visible':>9s}{'median ms':>11s}{'min ms':>9s}{'ms/image':>10s}")
    for (batch, size, num_visible), times in zip(cases, seconds.values(), strict=True):
        visible = num_visible or method.config.resolve_num_visible((size // 16) ** 2)
        median, minimum = statistics.median(times) * 1e3, min(times) * 1e3
        print(f"{batch:5d}{size:6d}{visible:9d}{median:11.0f}{minimum:9.0f}{minimum / batch:10.1f}")


class SectionTimer:
    """The time between marks, summed by name; on a GPU by CUDA events, without synchronisation."""

    def __init__(self, device: torch.device) -> None:
        self.is_cuda = device.type == "cuda"
        self.marks = [("", self._now())]

    def _now(self) -> Any:
        if not self.is_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def mark(self, name: str) -> None:
        """End a section of this name."""
        self.marks.append((name, self._now()))

    def seconds(self) -> dict[str, float]:
        if self.is_cuda:
            torch.cuda.synchronize()
        total: dict[str, float] = defaultdict(float)
        for (_, start), (name, end) in zip(self.marks, self.marks[1:], strict=False):
            total[name] += start.elapsed_time(end) / 1e3 if self.is_cuda else end - start
        return dict(total)


def time_step_sections(trainer: TimedTrainer, scenes: SceneBatch) -> dict[str, float]:
    """Take a step and return the seconds of each section."""
    staged_model, model = cast(StagedModel, trainer.timed_model), trainer.timed_model.model
    clock = SectionTimer(scenes.maps["rgb"].device)

    def enter_encoder(_: nn.Module, inputs: tuple[Tensor]) -> None:
        clock.mark("embeddings")
        inputs[0].register_hook(lambda _: clock.mark("backward: encoder"))

    def leave_encoder(_: nn.Module, __: tuple[Tensor], latent: Tensor) -> None:
        clock.mark("encoder")
        latent.register_hook(lambda _: clock.mark("backward: losses, heads, decoder"))

    encoder = model.get_submodule("encoder")
    hooks = [encoder.register_forward_pre_hook(enter_encoder), encoder.register_forward_hook(leave_encoder)]
    for name, module in model.named_modules():
        if name.startswith("heads.") or name.endswith(".head"):
            hooks.append(module.register_forward_pre_hook(lambda *_: clock.mark("decoder")))
            hooks.append(module.register_forward_hook(lambda *_: clock.mark("heads")))
    with trainer.autocast(scenes):
        maps = staged_model.prepare_inputs(scenes)
        clock.mark("prepare")
        masks = staged_model.sample_masks(scenes)
        clock.mark("masks")
        predictions = model(maps, masks)
        clock.mark("decoder")
        total = staged_model.compute_loss(predictions, maps, masks)
        clock.mark("losses")
    total.backward()
    clock.mark("backward: embeddings")
    trainer.update()
    clock.mark("optimiser")
    for hook in hooks:
        hook.remove()
    return clock.seconds()


def time_indexing(trainer: TimedTrainer, scenes: SceneBatch) -> float:
    """Return the seconds of gathers and scatters in forward and backward, without sampling masks."""
    staged_model = cast(StagedModel, trainer.timed_model)
    with trainer.autocast(scenes):
        maps, masks = staged_model.prepare_inputs(scenes), staged_model.sample_masks(scenes)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            staged_model.compute_loss(trainer.timed_model.model(maps, masks), maps, masks).backward()
    trainer.optimizer.zero_grad(set_to_none=True)
    return sum(float(event.self_cpu_time_total) for event in profile.key_averages() if event.key in INDEXING) / 1e6


def print_step_sections(trainers: Mapping[str, TimedTrainer], scenes: SceneBatch, *, rounds: int) -> None:
    seconds: dict[str, list[dict[str, float]]] = {name: [] for name in trainers}
    for turn in range(rounds + 2):
        for name, trainer in trainers.items():
            parts = time_step_sections(trainer, scenes)
            if turn >= 2:
                seconds[name].append(parts)
    print(
        "\nSections of a step in bfloat16, median ms and fraction\n" + " " * 34 + "".join(f"{n:>26s}" for n in trainers)
    )
    medians = {
        name: {part: statistics.median(turn[part] for turn in turns) for part in turns[0]}
        for name, turns in seconds.items()
    }
    for part in next(iter(medians.values())):
        cells = (f"{times[part] * 1e3:18.1f}{times[part] / sum(times.values()):8.1%}" for times in medians.values())
        print(f"{part:34s}" + "".join(cells))
    if scenes.maps["rgb"].device.type == "cpu":
        for name, trainer in trainers.items():
            indexing = min(time_indexing(trainer, scenes) for _ in range(rounds))
            masks = min(turn["masks"] for turn in seconds[name])
            step = min(sum(turn.values()) for turn in seconds[name])
            fraction = f"{(masks + indexing) / step:.2%} of the step"
            print(
                f"{name}: at least {masks * 1e3:.1f} ms masks, {indexing * 1e3:.1f} ms gather and scatter: {fraction}"
            )


def bench_sections(rounds: int) -> None:
    trainers = {name: TimedTrainer(VARIANTS[name]()) for name in ("c2fmae", "c2fmae, context=visible", "mae", BASELINE)}
    print_step_sections(trainers, draw_scene_batch(BATCH), rounds=rounds)


SECTIONS: dict[str, Callable[[int], None]] = {
    "fp32": bench_fp32,
    "bf16": bench_bf16,
    "compiled": bench_compiled,
    "parts": bench_sections,
    "memory": bench_step_memory,
    "scaling": bench_scaling,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=SECTIONS)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    if arguments.only is None:
        for name in SECTIONS:
            command = [sys.executable, "-m", "benchmarks.bench_step", "--only", name]
            subprocess.run([*command, "--rounds", str(arguments.rounds)], check=True)
        return
    torch.set_num_threads(2)
    torch.manual_seed(0)
    SECTIONS[arguments.only](arguments.rounds)


if __name__ == "__main__":
    main()
