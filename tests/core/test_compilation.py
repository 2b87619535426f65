"""Compiled models: equal gradients, one graph for each kind of block, static shapes, and evaluations without graphs."""

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch._inductor.runtime.cache_dir_utils import default_cache_dir as temporary_cache_dir
from torch.nn.parallel import DistributedDataParallel

from c2fmae.core.compilation import KERNEL_CACHE_VARIABLE, compile_function, compile_model, run_eagerly
from c2fmae.core.distributed import World
from c2fmae.core.loop import autocast
from c2fmae.core.model_preparation import prepare_model
from c2fmae.core.reduced_counts import ReducedCounts
from c2fmae.core.training import CompiledParts, TrainingConfig
from c2fmae.methods.masked.task import PretrainingTask
from tests.core.loop_processes import SMALL_OVERRIDES
from tests.methods.tiny_methods import build_tiny_method, draw_noise_scenes, perturb_parameters

BATCH_SIZE, SIZE = 4, (16, 16)


@pytest.fixture(autouse=True)
def isolation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Start without graphs, and restore what compilation sets for the whole process."""
    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setenv("C2FMAE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv(KERNEL_CACHE_VARIABLE, temporary_cache_dir())  # as torch does when it is imported
    with torch._dynamo.config.patch(recompile_limit=4):  # fewer than the default, and whatever earlier tests left
        yield


def use_backend(monkeypatch: pytest.MonkeyPatch, backend: str | Callable[..., Any]) -> None:
    """Compile with this backend, as `Module.compile` does too."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))


def fail(*_: object) -> NoReturn:
    raise AssertionError("compiled")


def learn(compiled_parts: CompiledParts, precision: str, *overrides: str) -> tuple[list[Tensor], list[int]]:
    """Return losses and gradients of three steps in two micro-batches, and the number of graphs after each step."""
    config = TrainingConfig.from_dict({"steps": 3, "lr": 1.0, "precision": precision, "compile": compiled_parts})
    method = build_tiny_method("c2fmae", *SMALL_OVERRIDES, "encoder.depth=2", *overrides, size=SIZE)
    perturb_parameters(method.model)
    names = list(method.model.state_dict())
    prepare_model(method.model, config, World())
    assert list(method.model.state_dict()) == names
    task, results, graphs = PretrainingTask(method, 0, compiled_parts=compiled_parts), list[Tensor](), list[int]()
    for step in range(3):
        torch.manual_seed(step)  # for drop path
        micro_batches = task.split(
            draw_noise_scenes(BATCH_SIZE, SIZE, seed=step),
            num_micro_batches=2,
            step=step,
            progress=step / 3,
            world=World(),
        )
        for micro_batch in micro_batches:
            counts = ReducedCounts([task.compute_counts(micro_batch)], {}, World())
            with autocast(config, torch.device("cpu")):
                loss = task.compute_losses(method.model, micro_batch, counts)
            loss.total.backward()
            results += [loss.total.detach(), *loss.terms.values()]
        results += [parameter.grad.clone() for parameter in method.model.parameters() if parameter.grad is not None]
        graphs.append(counters["stats"]["unique_graphs"])
    return results, graphs


@pytest.mark.compile
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch reads it, and hides the warning
@pytest.mark.parametrize(
    ("compiled_parts", "precision", "overrides", "num_graphs"),
    [
        ("blocks", "fp32", ["encoder.grad_checkpointing=true"], 4),  # encoder, decoder, cross-attention, losses
        ("blocks", "bf16", ["encoder.drop_path=0.5"], 5),  # blocks with different rates are different graphs
        ("model", "fp32", ["encoder.grad_checkpointing=true"], 1),
        ("model", "bf16", [], 1),
        ("blocks", "fp32", ["decoder.share=0.5"], 4),
        ("model", "fp32", ["decoder.share=0.5"], 1),
    ],
)
def test_compiled_parts_give_the_same_bits_without_recompilation(
    monkeypatch: pytest.MonkeyPatch,
    compiled_parts: CompiledParts,
    precision: str,
    overrides: list[str],
    num_graphs: int,
) -> None:
    use_backend(monkeypatch, "aot_eager")
    found, graphs = learn(compiled_parts, precision, *overrides)
    assert graphs == [num_graphs] * 3
    if compiled_parts == "model":  # whose graph has lists of visible patches with a fixed length
        monkeypatch.setattr("c2fmae.models.embeddings.torch.compiler.is_compiling", lambda: True)
    expected, _ = learn("off", precision, *overrides)
    assert len(found) == len(expected) > 0
    assert [index for index, each in enumerate(expected) if not torch.equal(each, found[index])] == []


def test_nothing_is_compiled_unless_asked() -> None:
    model = nn.Linear(2, 2)
    compile_model(model, "off")
    assert model._compiled_call_impl is None
    assert os.environ[KERNEL_CACHE_VARIABLE] == temporary_cache_dir()


@pytest.mark.compile
def test_compiled_models_and_functions_run_eagerly_where_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    use_backend(monkeypatch, fail)
    model, double = nn.Sequential(nn.Linear(2, 2)), compile_function(lambda x: 2 * x)
    expected, x = model(torch.ones(3, 2)), torch.ones(3, 2)
    compile_model(model, "model")
    with run_eagerly():
        assert torch.equal(double(model(x)), 2 * expected)
    with pytest.raises(Exception, match="compiled"):
        model(x)


class Scale(nn.Module):
    """A block with a rate of its own, as drop path gives to blocks."""

    def __init__(self, rate: float, *, has_break: bool = False) -> None:
        super().__init__()
        self.rate, self.has_break = rate, has_break

    def forward(self, x: Tensor) -> Tensor:
        if self.has_break:
            torch._dynamo.graph_break()
        return self.rate * x


class Stack(nn.Sequential):
    """A model of blocks."""

    def trunk_layers(self) -> list[list[nn.Parameter]]:
        return []

    def sharding_units(self) -> list[nn.Module]:
        return [*self]


@pytest.mark.compile
def test_any_number_of_blocks_may_differ_and_each_shape_is_a_static_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[object, ...]] = []

    def record(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        shapes.extend(tuple(x.shape) for x in inputs)
        return graph.forward

    use_backend(monkeypatch, record)
    num_blocks, x = 2 * torch._dynamo.config.recompile_limit, torch.ones(3)
    model = Stack(*(Scale(1 + index / 8) for index in range(num_blocks)))
    expected, double = model(x), compile_function(lambda x: 2 * x)
    compile_model(model, "blocks")
    for _ in range(2):
        assert torch.equal(model(x), expected)
    assert shapes == [(3,)] * num_blocks
    for size in (4, 5, 4, 5):
        double(torch.ones(size))
    assert shapes[num_blocks:] == [(4,), (5,)]


@pytest.mark.compile
def test_each_shape_of_each_block_is_a_static_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    use_backend(monkeypatch, "eager")
    num_blocks, num_shapes = torch._dynamo.config.recompile_limit, 3
    model = Stack(*(Scale(1 + index / 8) for index in range(num_blocks)))
    compile_model(model, "blocks", num_shapes=num_shapes)
    for _ in range(2):
        for size in range(num_shapes):
            model(torch.ones(2 + size))
    assert counters["stats"]["unique_graphs"] == num_blocks * num_shapes


@pytest.mark.compile
def test_processes_that_average_gradients_leave_the_graphs_of_blocks_whole(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sizes = list[int]()

    def record(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        del inputs
        sizes.append(sum(node.op == "call_function" for node in graph.graph.nodes))
        return graph.forward

    use_backend(monkeypatch, record)
    block = nn.Sequential(*(nn.Linear(512, 512) for _ in range(4)))
    store = dist.FileStore(str(tmp_path / "store"), 1)  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        with torch._dynamo.config.patch(optimize_ddp=True):  # as it is by default
            compile_model(model := Stack(block), "blocks")
            DistributedDataParallel(model, bucket_cap_mb=1)(torch.ones(1, 512))
    finally:
        dist.destroy_process_group()
    assert sizes == [4]


@pytest.mark.compile
def test_a_break_in_a_graph_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    use_backend(monkeypatch, "eager")
    for compiled_parts in ("blocks", "model"):
        model = Stack(Scale(2.0, has_break=True))
        compile_model(model, compiled_parts)
        with pytest.raises(Exception, match="graph_break"):
            model(torch.ones(3))


def test_kernels_are_cached_in_the_directory_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compile_model(nn.Linear(2, 2), "model")
    assert os.environ[KERNEL_CACHE_VARIABLE] == str(tmp_path / "cache" / "inductor")
    assert (tmp_path / "cache" / "inductor").is_dir()
    monkeypatch.setenv(KERNEL_CACHE_VARIABLE, str(tmp_path / "chosen"))
    compile_model(nn.Linear(2, 2), "model")
    assert os.environ[KERNEL_CACHE_VARIABLE] == str(tmp_path / "chosen")


def test_without_a_writable_cache_directory_kernels_go_to_the_directory_of_torch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("C2FMAE_CACHE", str(tmp_path / "file"))
    compile_model(nn.Linear(2, 2), "model")
    monkeypatch.setenv("C2FMAE_CACHE", str(tmp_path))
    monkeypatch.setattr(os, "access", lambda *_: False)
    compile_model(nn.Linear(2, 2), "model")
    assert os.environ[KERNEL_CACHE_VARIABLE] == temporary_cache_dir()
