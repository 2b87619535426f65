"""A pre-training step on a GPU, traced with fake tensors: what it copies and launches, and that it never waits."""

import dataclasses
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from c2fmae.core.distributed import World
from c2fmae.core.masks import GranularityMembers, Masks
from c2fmae.core.scene import SceneBatch
from c2fmae.methods import MaskedAutoencoding
from c2fmae.methods.masked.batch_masker import MaskedScenes
from c2fmae.methods.masked.model_inputs import _mean_std_tensors
from c2fmae.methods.masked.task import MicroBatch, PretrainingTask
from tests.methods.tiny_methods import build_tiny_method, draw_noise_scenes

GPU = World(device=torch.device("cuda"))


class Trace(TorchDispatchMode):
    """Counts what is launched on the GPU, and lists copies to it. Fake tensors raise an error if a value is read."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.launches: Counter[str] = Counter()
        self.copied: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        inputs, outputs = ([each for each in tree_iter(tree) if isinstance(each, Tensor)] for tree in (args, result))
        if any(each.device.type == "cuda" for each in outputs) and not func.is_view:
            copied = [each for each in inputs if each.device.type == "cpu" and each.ndim]
            assert not copied or kwargs["non_blocking"], "the host waits for a copy"
            self.copied += copied
            self.launches["copy" if copied else str(func)] += 1
        return result


@pytest.fixture
def mode() -> Iterator[FakeTensorMode]:
    yield FakeTensorMode()
    _mean_std_tensors.cache_clear()  # no later test may get fake tensors


def move_to_fake_gpu(model: nn.Module, mode: FakeTensorMode) -> None:
    with mode:
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                module.register_parameter(name, nn.Parameter(torch.empty(parameter.shape, device="cuda")))


def make_fake(part: MaskedScenes, mode: FakeTensorMode) -> MaskedScenes:
    """Return a micro-batch of fake tensors."""
    fake, masks = mode.from_tensor, part.masks
    assert masks.members is not None
    members = tuple(GranularityMembers(fake(slots), fake(patches)) for slots, patches in masks.members)
    return dataclasses.replace(
        part,
        scenes=SceneBatch(part.scenes.keys, {name: fake(each) for name, each in part.scenes.maps.items()}),
        masks=Masks(masks.granularities, fake(masks.is_masked), fake(masks.visible_idx), members),
        counts=fake(part.counts),
    )


def list_tensors(part: MaskedScenes) -> list[Tensor]:
    assert part.masks.members is not None
    lists = [each for members in part.masks.members for each in members]
    return [*part.scenes.maps.values(), part.masks.is_masked, part.masks.visible_idx, *lists, part.counts]


def trace_split(method: MaskedAutoencoding, mode: FakeTensorMode) -> tuple[list[MaskedScenes], list[MicroBatch], Trace]:
    """Trace what comes before the model in a later step than the first."""
    task = PretrainingTask(method, 0)
    masked = task.preparer.prepare(draw_noise_scenes(4), num_micro_batches=2, step=0, progress=0.25, world=World())
    batch = [make_fake(part, mode) for part in masked]
    with mode:
        task.split(batch, num_micro_batches=2, step=0, progress=0.25, world=GPU)
        with Trace() as trace:
            parts = task.split(batch, num_micro_batches=2, step=1, progress=0.25, world=GPU)
            assert all(task.compute_counts(part) for part in parts)
    return batch, parts, trace


def test_a_step_copies_only_what_workers_made_and_masks_nothing(mode: FakeTensorMode) -> None:
    batch, _, trace = trace_split(build_tiny_method(), mode)
    pinned = [tensor for part in batch for tensor in list_tensors(part)]  # `pin_memory` of the loader does it
    assert sorted(map(id, trace.copied)) == sorted(map(id, pinned))
    del trace.launches["copy"]
    assert sum(trace.launches.values()) <= 2 * 6, trace.launches  # standardisation of images


def test_masked_scenes_pin_all_tensors_that_a_step_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[int] = []

    def pin(tensor: Tensor) -> Tensor:
        pinned.append(id(tensor))
        return tensor

    monkeypatch.setattr(Tensor, "pin_memory", pin)
    task = PretrainingTask(build_tiny_method(), 0)
    (part,) = task.preparer.prepare(draw_noise_scenes(4), num_micro_batches=1, step=0, progress=0.0, world=World())
    assert list_tensors(part.pin_memory()) == list_tensors(part)
    assert sorted(pinned) == sorted(map(id, list_tensors(part)))


def test_the_forward_pass_reads_no_value_and_embeds_visible_patches_alone(mode: FakeTensorMode) -> None:
    method = build_tiny_method("c2fmae", "encoder.depth=1")
    move_to_fake_gpu(method.model, mode)
    task = PretrainingTask(method, 0)
    _, parts, _ = trace_split(method, mode)
    with mode, Trace() as trace:
        loss = task.compute_losses(method.model, parts[0], task.compute_counts(parts[0]))
    assert loss.total.device.type == "cuda"
    assert not [name for name in trace.launches if "nonzero" in name], "lists of members are made again"
    assert [each.numel() for each in trace.copied if each.numel() > 10] == []
