from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from c2fmae.core.checkpoint import list_checkpoints, load_checkpoint
from c2fmae.core.distributed import World
from c2fmae.core.errors import UserError
from c2fmae.core.sharding import compute_total_norm, gather, shard_like, to_local_tensor, unsharded
from c2fmae.core.training import TrainingConfig
from tests.core import sharding_processes
from tests.core.loop_processes import NUM_STEPS, SINGLE_PROCESS
from tests.core.sharding_processes import (
    FLOAT32_CASE,
    FLOAT64_CASE,
    RECORDED_STEPS,
    RUNS,
    WORLD_SIZE,
    ShardedRun,
    predict_hidden,
)

pytestmark = pytest.mark.numeric


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    spawn(sharding_processes.run_rank, args=(folder,), nprocs=WORLD_SIZE)
    return folder


@pytest.fixture(scope="module")
def results(folder: Path) -> list[dict[str, Any]]:
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD_SIZE)]


def assert_close(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float) -> None:
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(actual[name], tensor, rtol=tolerance, atol=tolerance)


def assert_same(one: Path, other: Path) -> None:
    ours, theirs = load_checkpoint(one), load_checkpoint(other)
    assert ours.tensors.keys() == theirs.tensors.keys()
    assert [name for name, tensor in ours.tensors.items() if not tensor.equal(theirs.tensors[name])] == []


def end_of(folder: Path) -> Path:
    return folder / f"step-{NUM_STEPS:08d}"


def single_process(name: str) -> tuple[list[dict[str, Any]], dict[int, dict[str, Tensor]]]:
    case, settings = RUNS[name]
    reports, tensors = case.run_steps(SINGLE_PROCESS, **settings)
    return [vars(report) for report in reports], {step: tensors[step - 1] for step in RECORDED_STEPS}


def losses(report: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in report["values"].items() if name.startswith(("loss", "grad_norm"))}


@pytest.mark.unchecked
@pytest.mark.parametrize("name", ["float64", "float64, each gradient clipped"])
def test_sharded_ddp_and_single_process_training_agree_in_float64(results: list[dict[str, Any]], name: str) -> None:
    reports, tensors = results[0]["runs"][f"{name} sharded"]
    for others in (results[0]["runs"][f"{name} ddp"], single_process(name)):
        for mine, theirs in zip(reports, others[0], strict=True):
            assert mine["values"] == pytest.approx(theirs["values"], rel=1e-9, abs=1e-9)
        for step in RECORDED_STEPS:
            assert_close(tensors[step], others[1][step], 1e-9)


@pytest.mark.unchecked
def test_losses_and_gradients_agree_in_float32(results: list[dict[str, Any]]) -> None:
    reports, tensors = results[0]["runs"]["float32 sharded"]
    for others in (results[0]["runs"]["float32 ddp"], single_process("float32")):
        for mine, theirs in zip(reports, others[0], strict=True):
            assert losses(mine) == pytest.approx(losses(theirs), rel=1e-5, abs=1e-5)
        for key, tensor in others[1][1].items():
            if key.endswith("/exp_avg"):  # 0.1 times the gradient
                torch.testing.assert_close(10 * tensors[1][key], 10 * tensor, rtol=1e-5, atol=1e-5)


@pytest.mark.unchecked
def test_the_first_step_in_bf16_is_equal_to_ddp(results: list[dict[str, Any]]) -> None:
    (mine, tensors), (theirs, others) = (results[0]["runs"][f"bf16 {way}"] for way in ("sharded", "ddp"))
    assert losses(mine[0])["loss"] == losses(theirs[0])["loss"]
    moments = [key for key in tensors[1] if key.endswith("/exp_avg")]
    assert_close({key: tensors[1][key] for key in moments}, {key: others[1][key] for key in moments}, 1e-6)
    assert all(tensor.dtype == torch.float32 for tensor in tensors[1].values())
    assert losses(mine[-1]) == pytest.approx(losses(theirs[-1]), rel=1e-2)


@pytest.mark.unchecked
def test_ranks_agree_and_the_main_rank_gathers_the_tensors(results: list[dict[str, Any]]) -> None:
    for name in RUNS:
        (reports, tensors), (others, nothing) = (each["runs"][f"{name} sharded"] for each in results)
        for mine, theirs in zip(reports, others, strict=True):
            assert repr(mine["values"]) == repr(theirs["values"])
            assert mine["flags"] == theirs["flags"] == {"requests": 3}
        assert nothing == {step: {} for step in RECORDED_STEPS}
        assert all(type(tensor) is Tensor for step in RECORDED_STEPS for tensor in tensors[step].values())


@pytest.mark.unchecked
@pytest.mark.parametrize("name", ["nan", "nan, late"])
def test_a_step_that_is_not_finite_is_skipped_by_all_ranks(results: list[dict[str, Any]], name: str) -> None:
    for each in results:
        (mine, _), (theirs, _) = (each["runs"][f"{name} {way}"] for way in ("sharded", "ddp"))
        assert [report["skip_details"] is None for report in mine] == [True, True, False, True, True]
        trouble, expected = mine[2]["skip_details"], theirs[2]["skip_details"]
        assert [one["keys"] for one in trouble] == [one["keys"] for one in expected]
        assert trouble[0]["loss"] == pytest.approx(expected[0]["loss"], nan_ok=True)
    tensors, others = (results[0]["runs"][f"{name} {way}"][1] for way in ("sharded", "ddp"))
    assert_close(tensors[NUM_STEPS], others[NUM_STEPS], 1e-9)
    assert_close(tensors[NUM_STEPS], results[0]["runs"]["nan sharded"][1][NUM_STEPS], 0)


@pytest.mark.unchecked
def test_checkpoints_move_between_ddp_sharded_and_single_process_training(folder: Path) -> None:
    paths = list_checkpoints(folder / "alternating")
    assert [load_checkpoint(path).step for path in paths] == [4, NUM_STEPS]
    expected = FLOAT64_CASE.run_steps(SINGLE_PROCESS)[1]
    for path, step in zip(paths, (4, NUM_STEPS), strict=True):
        assert_close(load_checkpoint(path).tensors, expected[step - 1], 1e-9)
    once = ShardedRun.create(FLOAT64_CASE, SINGLE_PROCESS).resume(paths[0]).train_to(NUM_STEPS)
    assert_close(once.training.gather_tensors(), expected[-1], 1e-9)


@pytest.mark.unchecked
def test_resumed_sharded_training_ends_bitwise_equal(folder: Path) -> None:
    assert_same(end_of(folder / "uninterrupted"), end_of(folder / "resumed"))


@pytest.mark.unchecked
def test_sharding_units_are_the_blocks(results: list[dict[str, Any]]) -> None:
    names = ("semantic", "instance", "rgb")
    decoders = [f"decoder.stages.{name}.{block}" for name in names for block in ("first", "rest.0")]
    assert results[0]["units"] == ["", "encoder.blocks.0", *decoders]


@pytest.mark.unchecked
def test_each_rank_holds_half_of_weights_moments_and_ema(results: list[dict[str, Any]]) -> None:
    each = FLOAT32_CASE.make_method()
    weights = sum(parameter.numel() * 4 for parameter in each.model.parameters())
    for step in (0, 1):  # before and after a resume
        for kind, copies in {"weights": 1, "moments": 2, "ema": 1}.items():
            parts = [one["bytes"][step][kind] for one in results]
            assert copies * weights <= sum(parts) <= 1.02 * copies * weights  # padding
            assert all(0.45 < part / (copies * weights) < 0.55 for part in parts)


@pytest.mark.unchecked
def test_running_a_model_unsharded_on_one_rank_does_not_change_training(
    folder: Path, results: list[dict[str, Any]]
) -> None:
    assert_same(end_of(folder / "uninterrupted"), end_of(folder / "predicting"))
    assert [len(each["predictions"]) for each in results] == [1 + 3 + 5, 0]
    first, *_, last = results[0]["predictions"]
    assert torch.equal(first, predict_hidden(FLOAT32_CASE.make_method()))
    assert not torch.equal(first, last)


@pytest.mark.unchecked
def test_every_rank_can_gather_all_weights(results: list[dict[str, Any]]) -> None:
    expected = FLOAT64_CASE.make_method().model.state_dict()
    for each in results:
        assert each["unsharded"].keys() == expected.keys()
        assert [name for name, tensor in expected.items() if not tensor.equal(each["unsharded"][name])] == []


@pytest.mark.unchecked
def test_weights_that_are_not_finite_on_one_rank_are_saved_by_none(folder: Path, results: list[dict[str, Any]]) -> None:
    assert [each["is finite"] for each in results] == [(True, False)] * 2
    assert not (folder / "nan").exists()


def test_plain_tensors_and_models_pass_unchanged() -> None:
    tensor, model = torch.tensor([3.0, 4.0]), nn.Linear(2, 2)
    assert to_local_tensor(tensor) is tensor
    assert shard_like(tensor, tensor) is tensor
    assert gather({"a": tensor})["a"] is tensor
    assert compute_total_norm([tensor, torch.tensor([12.0])]).item() == 13
    before = [*model.parameters()]
    World().shard_model(model)
    with unsharded(model):
        assert all(one is other for one, other in zip(before, model.parameters(), strict=True))


def test_sharding_with_compilation_as_one_graph_is_rejected() -> None:
    with pytest.raises(UserError) as caught:
        TrainingConfig.from_dict({"steps": 1, "lr": 1.0, "sharded": True, "compile": "model"}, source="training")
    assert str(caught.value) == (
        "training: compile: a sharded model cannot be one graph, because weights are gathered between blocks (expected "
        "blocks or off, got model). Set it to blocks"
    )


@pytest.mark.unchecked
def test_compiled_blocks_do_not_change_sharded_training(results: list[dict[str, Any]]) -> None:
    for each in results:
        (reports, tensors), (others, expected) = each["compiled"]["run"], each["runs"]["float32 sharded"]
        assert [report["values"] for report in reports] == [report["values"] for report in others]
        for step in RECORDED_STEPS:
            assert tensors[step].keys() == expected[step].keys()
            assert all(torch.equal(tensor, tensors[step][name]) for name, tensor in expected[step].items())
        assert each["compiled"]["graphs"] == 2  # blocks of the encoder and of the decoder
