import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.multiprocessing.spawn import spawn

from c2fmae.core.distributed import World
from c2fmae.core.errors import UserError
from c2fmae.core.loop import StepLoss, StepReport, TrainingLoop, TrainingState, autocast
from c2fmae.core.optimiser import build_parameter_groups
from c2fmae.core.training import TrainingConfig, plan_training
from tests.core import loop_processes
from tests.core.loop_processes import (
    AVERAGES,
    BATCH_SIZE,
    EQUAL_CASES,
    METHODS,
    NUM_STEPS,
    ORDERED_CASE,
    SINGLE_PROCESS,
    LoopCase,
    StepHistory,
    draw_batches,
    make_training_config,
)
from tests.methods.tiny_methods import to_float64

pytestmark = pytest.mark.numeric

Tensors = Mapping[str, Tensor]


def run_with_one_batch(case: LoopCase) -> StepHistory:
    """Return the same steps without accumulation, on one rank."""
    return dataclasses.replace(case, num_micro_batches=1).run_steps()


def assert_close(actual: StepHistory, expected: StepHistory, tolerance: float) -> None:
    """Compare the reports of all steps, and all tensors after each."""
    for (mine, theirs), (ours, others) in zip(zip(*actual, strict=True), zip(*expected, strict=True), strict=True):
        assert mine.step == ours.step
        assert mine.skip_details is None
        assert list(mine.values) == list(ours.values)
        assert mine.values == pytest.approx(ours.values, rel=tolerance, abs=tolerance)
        assert theirs.keys() == others.keys()
        for name, tensor in theirs.items():
            torch.testing.assert_close(tensor, others[name], rtol=tolerance, atol=tolerance)


def same(actual: Tensors, expected: Tensors) -> bool:
    return actual.keys() == expected.keys() and all(torch.equal(actual[name], expected[name]) for name in expected)


@dataclasses.dataclass(frozen=True)
class RankResults:
    """Results of both ranks."""

    shared: dict[LoopCase, list[StepHistory]]
    poisoned: list[StepHistory]
    poisoned_late: list[StepHistory]
    in_order: list[StepHistory]


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> RankResults:
    folder = tmp_path_factory.mktemp("processes")
    spawn(loop_processes.run_rank, args=(folder,), nprocs=loop_processes.WORLD_SIZE)
    both = [torch.load(folder / f"{rank}.pt") for rank in range(loop_processes.WORLD_SIZE)]
    runs = [
        [([StepReport(**report) for report in reports], tensors) for reports, tensors in each]
        for each in zip(*both, strict=True)
    ]
    return RankResults(dict(zip(EQUAL_CASES, runs[:-3], strict=True)), *runs[-3:])


@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("method", METHODS)
def test_accumulated_micro_batches_equal_one_batch(method: str, average: str) -> None:
    case = LoopCase(method, average, num_micro_batches=4)
    assert_close(case.run_steps(), run_with_one_batch(case), 1e-9)


@pytest.mark.unchecked
def test_two_processes_equal_one_batch(processes: RankResults) -> None:
    for case in [case for case in EQUAL_CASES if case.is_float64]:
        expected = run_with_one_batch(case)
        for actual in processes.shared[case]:
            assert_close(actual, expected, 1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_accumulated_micro_batches_equal_one_batch_in_single_precision(method: str) -> None:
    case = LoopCase(method, num_micro_batches=4, is_float64=False)
    assert_nearly(case.run_steps(), run_with_one_batch(case))


@pytest.mark.unchecked
def test_two_processes_equal_one_batch_in_single_precision(processes: RankResults) -> None:
    for case in [case for case in EQUAL_CASES if not case.is_float64]:
        for actual in processes.shared[case]:
            assert_nearly(actual, run_with_one_batch(case))


def assert_nearly(actual: StepHistory, expected: StepHistory) -> None:
    """Compare the losses of all steps and the gradients of the first, a tenth of which is the first moment after it."""
    for mine, ours in zip(actual[0], expected[0], strict=True):
        losses = {name: value for name, value in ours.values.items() if name.startswith(("loss", "grad_norm"))}
        assert {name: mine.values[name] for name in losses} == pytest.approx(losses, rel=1e-5, abs=1e-5)
    for name, tensor in expected[1][0].items():
        if name.endswith("/exp_avg"):
            torch.testing.assert_close(10 * actual[1][0][name], 10 * tensor, rtol=1e-5, atol=1e-5)


@pytest.mark.unchecked
def test_all_ranks_have_the_same_bits(processes: RankResults) -> None:
    for (first, firsts), (second, seconds) in (*processes.shared.values(), processes.poisoned, processes.in_order):
        for one, other in zip(first, second, strict=True):
            assert repr(one.values) == repr(other.values)
            assert one.flags == other.flags == {"said": 3}
        assert all(same(one, other) for one, other in zip(firsts, seconds, strict=True))


@pytest.mark.unchecked
def test_averaging_in_rank_order_gives_the_same_bits_for_two_processes(processes: RankResults) -> None:
    reports, tensors = processes.in_order[0]
    usual, others = processes.shared[ORDERED_CASE][0]
    assert reports == usual
    assert all(same(*each) for each in zip(tensors, others, strict=True))


@pytest.mark.unchecked
def test_a_step_that_is_not_finite_on_one_rank_is_skipped_by_both(processes: RankResults) -> None:
    for rank, (reports, tensors) in enumerate(processes.poisoned):
        assert [report.skip_details is None for report in reports] == [True, True, False, True, True]
        assert same(tensors[2], tensors[1])
        assert not same(tensors[3], tensors[2])
        trouble = reports[2].skip_details
        assert trouble is not None
        keys = [[f"scene-{4 * rank + 2 * index + place}" for place in (0, 1)] for index in (0, 1)]
        assert [each["keys"] for each in trouble] == keys
        finite = [[True, True], [False, True]][rank]
        assert [each["loss"] == each["loss"] for each in trouble] == finite
        assert [each["loss/rgb"] == each["loss/rgb"] for each in trouble] == finite
        assert [report.step for report in reports] == [1, 2, 3, 4, 5]


@pytest.mark.unchecked
def test_late_reports_of_several_ranks_equal_those_of_every_step(processes: RankResults) -> None:
    for (late, late_tensors), (reports, tensors) in zip(processes.poisoned_late, processes.poisoned, strict=True):
        assert repr(late) == repr(reports)
        expected = [*tensors[1:], tensors[-1]]  # those of the next step, and of the last
        assert all(same(*each) for each in zip(late_tensors, expected, strict=True))


@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("method", METHODS)
def test_steps_equal_a_loop_written_by_hand(method: str, average: str) -> None:
    case, config = LoopCase(method, average), make_training_config(layer_decay=0.5)
    reports, tensors = case.run_steps(layer_decay=0.5)
    built = case.make_method()
    model = built.model
    groups = build_parameter_groups(model, weight_decay=0.05, layer_decay=0.5)
    optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.95), foreach=False)
    slow = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for step, batch in enumerate(draw_batches()):
        rate = reports[step].values["lr"]
        maps = to_float64(built.prepare_inputs(batch))
        noise = built.masking.seed_step(config.seed, step)
        masks = built.sample_masks(batch, progress=step / NUM_STEPS, generator=noise)
        loss = built.compute_loss(model(maps, masks), maps, masks)
        optimiser.zero_grad()
        loss.total.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        for group in optimiser.param_groups:
            group["lr"] = rate * group["lr_scale"]
        optimiser.step()
        for name, parameter in model.named_parameters():
            slow[name] = 0.9 * slow[name] + 0.1 * parameter.detach()
        expected = {"loss": loss.total, "grad_norm": norm, **{f"loss/{k}": v for k, v in loss.terms.items()}}
        actual = {name: reports[step].values[name] for name in expected}
        assert actual == pytest.approx({name: value.item() for name, value in expected.items()}, rel=1e-11)
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(tensors[step][f"model/{name}"], parameter.detach(), rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(tensors[step][f"ema/{name}"], slow[name], rtol=1e-10, atol=1e-10)


def test_reports_have_epoch_progress_and_learning_rate() -> None:
    reports, _ = LoopCase("mae").run_steps(warmup_steps=2)
    assert [report.step for report in reports] == [1, 2, 3, 4, 5]
    assert [report.values["progress"] for report in reports] == [0.0, 0.2, 0.4, 0.6, 0.8]
    assert [report.values["epoch"] for report in reports] == [0.5, 1.0, 1.5, 2.0, 2.5]
    rates = [5e-4, 1e-3, 1e-3, 1e-4 + 9e-4 * 0.75, 1e-4 + 9e-4 * 0.25]
    assert [report.values["lr"] for report in reports] == pytest.approx(rates)
    assert all(report.flags == {"said": 1} for report in reports)


def test_a_restored_training_ends_in_the_same_bits() -> None:
    case = LoopCase(num_micro_batches=2, is_float64=False)
    reports, tensors = case.run_steps()
    for step in range(NUM_STEPS + 1):
        method = case.make_method()
        training = case.start_training(method)
        if step:
            training.restore(tensors[step - 1], step=step)
        rest = list(case.make_loop(method).run(training, list(draw_batches())[step:]))
        assert [report.values for report in rest] == [report.values for report in reports[step:]]
        assert same(training.gather_tensors(), tensors[-1])


def test_a_restored_training_continues_to_count_bad_steps() -> None:
    case = LoopCase("mae", is_float64=False, nan_at=(2, 5))
    _, tensors = case.run_steps()
    method = case.make_method()
    training = case.start_training(method)
    training.restore(tensors[1], step=2, bad_steps=4)
    assert training.bad_steps == 4
    steps = case.make_loop(method).run(training, list(draw_batches())[2:])
    assert [(report.step, training.bad_steps) for report in steps] == [(3, 5), (4, 0), (5, 0)]


def test_averaging_can_be_switched_on_or_off_on_resume() -> None:
    without, average = (TrainingState.create(nn.Linear(2, 2), make_training_config(ema=ema)) for ema in (None, 0.9))
    average.restore(without.gather_tensors(), step=1)
    assert average.ema is not None
    assert average.ema.keys() == {"weight", "bias"}
    for name, weights in without.model.named_parameters():
        assert torch.equal(average.ema[name], weights)
    without.restore(average.gather_tensors(), step=1)
    assert without.ema is None


@pytest.mark.parametrize(
    ("other", "problem"),
    [
        (nn.Linear(2, 4), "2 of 2 tensors differ in shape, for example weight: (4, 2) → (3, 2)"),
        (nn.Linear(2, 3, bias=False), "1 of 2 tensors differ in shape, for example bias: none → (3,)"),
    ],
)
def test_tensors_of_another_shape_are_rejected(other: nn.Module, problem: str) -> None:
    training = TrainingState.create(nn.Linear(2, 3), make_training_config())
    before = {name: tensor.clone() for name, tensor in training.gather_tensors().items()}
    with pytest.raises(UserError) as caught:
        training.restore(TrainingState.create(other, make_training_config()).gather_tensors(), step=1)
    expected = f"the checkpoint does not match the config: {problem}. Start a new run in another --out"
    assert str(caught.value) == expected
    assert training.step == 0
    assert same(training.gather_tensors(), before)


def test_no_more_batches_are_read_than_steps_are_left() -> None:
    case = LoopCase("mae")
    method = case.make_method()
    training, loop = case.start_training(method), case.make_loop(method)
    training.step = 3
    stream = iter(list(draw_batches()))
    assert [report.step for report in loop.run(training, stream)] == [4, 5]
    assert len(list(stream)) == 3
    stream = iter(list(draw_batches()))
    assert list(loop.run(training, stream)) == []
    assert len(list(stream)) == 5


@pytest.mark.parametrize("num_micro_batches", [1, 2])
def test_a_step_that_is_not_finite_changes_only_the_step_number(num_micro_batches: int) -> None:
    case = LoopCase(num_micro_batches=num_micro_batches, is_float64=False, nan_at=(2, 5))
    reports, tensors = case.run_steps()
    assert [report.step for report in reports] == [1, 2, 3, 4, 5]
    assert same(tensors[2], tensors[1])
    assert reports[2].values["loss"] != reports[2].values["loss"]
    assert (
        reports[2].values["valid/instance"]
        == dataclasses.replace(case, nan_at=None).run_steps()[0][2].values["valid/instance"]
    )
    trouble = reports[2].skip_details
    assert trouble is not None
    assert [name for each in trouble for name in each["keys"]] == [f"scene-{index}" for index in range(BATCH_SIZE)]
    assert list(trouble[0]) == ["keys", "loss", "loss/semantic", "loss/instance", "loss/rgb"]
    assert [each["loss"] == each["loss"] for each in trouble] == [True] * (num_micro_batches - 1) + [False]

    method = case.make_method()
    training = case.start_training(method)
    training.restore(tensors[1], step=3)
    stepped = next(case.make_loop(method).run(training, list(draw_batches())[3:], lambda: {"said": 1}))
    assert stepped == reports[3]
    assert same(training.gather_tensors(), tensors[3])


@pytest.mark.parametrize("nan_at", [None, (0, 1), (2, 5), (NUM_STEPS - 1, 0)])
def test_late_reports_equal_those_of_every_step(nan_at: tuple[int, int] | None) -> None:
    case = LoopCase("mae", num_micro_batches=2, is_float64=False, nan_at=nan_at)
    reports, tensors = case.run_steps()
    late, late_tensors = dataclasses.replace(case, delay=1).run_steps()
    assert repr(late) == repr(reports)
    expected = [*tensors[1:], tensors[-1]]  # those of the next step, and of the last
    assert all(same(*each) for each in zip(late_tensors, expected, strict=True))


def test_reports_are_late_except_at_boundaries_and_after_the_last_step() -> None:
    case = LoopCase("mae", delay=1, nan_at=(2, 5))
    requested = set[int]()  # steps whose report makes the next one a boundary

    def read_steps(boundaries: set[int], requests: set[int]) -> list[tuple[int, int, int]]:
        method = case.make_method()
        training, found = case.start_training(method), list[tuple[int, int, int]]()
        requested.clear()
        stream = case.make_loop(method).run(
            training, draw_batches(), is_boundary=lambda step: step in boundaries or bool(requested)
        )
        for report in stream:
            found.append((report.step, training.step, training.bad_steps))
            if report.step == training.step:
                requested.clear()
            elif report.step in requests:
                requested.add(report.step)
        return found

    assert read_steps(set(), set()) == [(1, 2, 0), (2, 3, 0), (3, 4, 1), (4, 5, 0), (5, 5, 0)]
    assert read_steps({2}, set()) == [(1, 2, 0), (2, 2, 0), (3, 4, 1), (4, 5, 0), (5, 5, 0)]
    assert read_steps({1, 3}, set()) == [(1, 1, 0), (2, 3, 0), (3, 3, 1), (4, 5, 0), (5, 5, 0)]
    assert read_steps(set(), {2}) == [(1, 2, 0), (2, 3, 0), (3, 3, 1), (4, 5, 0), (5, 5, 0)]


def test_bad_steps_are_counted_in_a_row() -> None:
    case = LoopCase("mae", is_float64=False, nan_at=(2, 5))
    method = case.make_method()
    training = case.start_training(method)
    assert [training.bad_steps for _ in case.make_loop(method).run(training, draw_batches())] == [0, 0, 1, 0, 0]


def test_no_step_is_taken_from_weights_that_are_not_finite() -> None:
    case = LoopCase("mae", is_float64=False)
    method = case.make_method()
    with torch.no_grad():
        next(method.model.parameters()).view(-1)[0] = torch.nan
    training = case.start_training(method)
    before = {name: tensor.clone() for name, tensor in training.gather_tensors().items()}
    assert [training.bad_steps for _ in case.make_loop(method).run(training, draw_batches())] == [1, 2, 3, 4, 5]
    after = training.gather_tensors()
    assert all(torch.equal(after[name].nan_to_num(7.0), before[name].nan_to_num(7.0)) for name in before)
    assert not any(after[name].any() for name in after.keys() - before.keys())  # moments are those of no step


@pytest.mark.parametrize("drop_path", [0.0, 0.5])
def test_gradient_checkpointing_gives_the_same_bits(drop_path: float) -> None:
    usual = ("encoder.depth=2", f"encoder.drop_path={drop_path}")
    reports, tensors = LoopCase(overrides=usual, is_float64=False, num_micro_batches=2).run_steps()
    again, others = LoopCase(
        overrides=(*usual, "encoder.grad_checkpointing=true"), is_float64=False, num_micro_batches=2
    ).run_steps()
    assert again == reports
    assert all(same(*each) for each in zip(others, tensors, strict=True))


@pytest.mark.compile
def test_a_compiled_model_takes_the_same_step() -> None:
    case = LoopCase("mae", compiled_parts="model")
    reports, tensors = case.run_steps(steps=1, warmup_steps=0)
    method = case.make_method()
    method.model.compile(backend="aot_eager")
    training = case.start_training(method, steps=1, warmup_steps=0)
    (report,) = case.make_loop(method, steps=1, warmup_steps=0).run(training, draw_batches())
    assert_close(([report], [training.gather_tensors()]), (reports, tensors), 1e-9)


def test_drop_path_depends_on_the_step_and_not_on_the_generators_history() -> None:
    case = LoopCase(overrides=("encoder.depth=2", "encoder.drop_path=0.5"), is_float64=False)
    runs = []
    for seed in (1, 2):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            runs.append(case.run_steps())
    assert runs[0][0] == runs[1][0]
    assert all(same(*each) for each in zip(runs[0][1], runs[1][1], strict=True))
    without = LoopCase(overrides=("encoder.depth=2",), is_float64=False).run_steps()
    assert runs[0][0][0].values["loss"] != without[0][0].values["loss"]


def test_bf16_is_used_in_the_forward_pass_only() -> None:
    case = LoopCase(is_float64=False)
    reports, tensors = case.run_steps(precision="bf16")
    usual, _ = case.run_steps()
    assert {tensor.dtype for tensor in tensors[-1].values()} == {torch.float32}
    assert reports[0].values["loss"] != usual[0].values["loss"]
    assert reports[0].values["loss"] == pytest.approx(usual[0].values["loss"], rel=0.02)
    for precision, is_half in (("bf16", True), ("fp32", False)):
        with autocast(make_training_config(precision=precision), torch.device("cpu")):
            assert (torch.ones(1, 1) @ torch.ones(1, 1)).dtype == (torch.bfloat16 if is_half else torch.float32)


class Roots:
    """A task whose loss is the mean of √(weight · number): 0 has a finite loss and no gradient."""

    def __init__(self) -> None:
        self.draws: list[Tensor] = []
        self.modes: list[bool] = []

    def split(
        self, batch: Tensor, *, num_micro_batches: int, step: int, progress: float, world: World
    ) -> Sequence[Tensor]:
        self.draws.append(torch.rand(()))
        return batch.chunk(num_micro_batches)

    def compute_counts(self, micro_batch: Tensor) -> Mapping[str, Tensor]:
        return {"all": torch.tensor(len(micro_batch))}

    def summarise_counts(self, counts: Mapping[str, int], progress: float) -> Mapping[str, float]:
        return {"found": counts["all"], "at": progress}

    def compute_losses(self, model: nn.Module, micro_batch: Tensor, counts: Mapping[str, Tensor]) -> StepLoss:
        self.modes.append(model.training)
        total = model(micro_batch).sqrt().sum() / counts["all"]
        return StepLoss(total, {"root": total.detach()})

    def sample_keys(self, micro_batch: Tensor) -> Sequence[str]:
        return [f"{number:g}" for number in micro_batch.flatten().tolist()]


class IsolatedWorld(World):
    """A rank of several without communication."""

    def start_all_reduce(self, tensor: Tensor) -> Callable[[], Tensor]:
        return lambda: tensor

    def wrap_ddp(self, model: nn.Module) -> nn.Module:
        return model


def roots(
    task: Roots, numbers: list[Tensor], world: World = SINGLE_PROCESS, **settings: Any
) -> tuple[TrainingState, list[StepReport]]:
    config = TrainingConfig(steps=len(numbers), lr=0.1, batch_size=2 * world.size, precision="fp32", **settings)
    model = nn.Linear(1, 1, bias=False).eval()
    nn.init.ones_(model.weight)
    training = TrainingState.create(model, config)
    loop = TrainingLoop(task, config, plan_training(config, num_samples=2 * world.size, world_size=world.size), world)
    return training, list(loop.run(training, numbers))


def test_the_loop_trains_any_task() -> None:
    task = Roots()
    training, (report,) = roots(task, [torch.tensor([[4.0], [16.0]])], micro_batch=1, weight_decay=0.0)
    assert report == StepReport(
        step=1,
        values={"epoch": 1.0, "progress": 0.0, "lr": 0.1, "loss": 3.0, "loss/root": 3.0, "grad_norm": 1.5}
        | {"found": 2, "at": 0.0},
        flags={},
        skip_details=None,
    )
    assert task.modes == [True, True]
    assert training.gather_tensors()["model/weight"].item() == pytest.approx(0.9)
    assert training.ema is None


def test_a_gradient_that_is_not_finite_skips_the_step() -> None:
    training, reports = roots(Roots(), [torch.tensor([[4.0], [0.0]])] * 2, micro_batch=1)
    assert [report.values["loss"] for report in reports] == [1.0, 1.0]
    trouble = [{"keys": [key], "loss": loss, "loss/root": loss} for key, loss in (("4", 1.0), ("0", 0.0))]
    assert [report.skip_details for report in reports] == [trouble, trouble]
    assert training.gather_tensors()["model/weight"].item() == 1.0
    assert (training.step, training.bad_steps) == (2, 2)


def test_a_skipped_step_does_not_change_running_statistics() -> None:
    config = TrainingConfig(steps=3, lr=0.1, batch_size=4, micro_batch=2, precision="fp32", ema=0.5)
    model = nn.Sequential(nn.BatchNorm1d(1), nn.Softplus())
    training = TrainingState.create(model, config)
    loop = TrainingLoop(Roots(), config, plan_training(config, num_samples=4, world_size=1))
    good, bad = torch.tensor([[1.0], [2.0], [3.0], [5.0]]), torch.tensor([[1.0], [2.0], [3.0], [float("inf")]])
    tensors = []
    for report in loop.run(training, [good, bad, good]):
        assert (report.skip_details is None) == (report.step != 2)
        tensors.append({name: tensor.clone() for name, tensor in training.gather_tensors().items()})
    first, skipped, last = tensors
    assert all(torch.equal(skipped[name], first[name]) for name in first)
    assert last["model/0.num_batches_tracked"] == 4
    assert all(torch.isfinite(tensor).all() for tensor in last.values())


class NamelessRoots(Roots):
    """The same, with keys that do not depend on the data."""

    def sample_keys(self, micro_batch: Tensor) -> Sequence[str]:
        return ["a"] * len(micro_batch)


def test_a_step_reads_nothing_back_from_the_device() -> None:
    config = TrainingConfig(steps=4, lr=0.1, batch_size=4, micro_batch=2, precision="fp32", ema=0.5, clip=1.0)
    plan = plan_training(config, num_samples=4, world_size=1)
    with FakeTensorMode():  # tensors without data, which cannot be read
        training = TrainingState.create(nn.Sequential(nn.BatchNorm1d(1), nn.Softplus()), config)
        reports = TrainingLoop(NamelessRoots(), config, plan, delay=2).run(training, [torch.ones(4, 1)] * 4)
        with pytest.raises(DataDependentOutputException):  # the report of the first step
            next(reports)
    assert training.step == 3


def test_random_numbers_of_a_step_depend_on_seed_step_and_rank() -> None:
    draws = {}
    for seed in (0, 1):
        for rank in (0, 1):
            task = Roots()
            roots(task, [torch.ones(2, 1)] * 3, IsolatedWorld(rank, 2), seed=seed)
            again = Roots()
            torch.rand(rank + seed + 1)
            roots(again, [torch.ones(2, 1)] * 3, IsolatedWorld(rank, 2), seed=seed)
            assert again.draws == task.draws
            draws[seed, rank] = [draw.item() for draw in task.draws]
    assert len({draw for values in draws.values() for draw in values}) == 12


@pytest.mark.parametrize(
    ("name", "tensor", "problem"),
    [
        ("x", torch.ones(2), "the checkpoint has an unexpected tensor, 'x'."),
        ("model/more", torch.ones(2), "the checkpoint does not match the config: 1 of 3 tensors differ in shape"),
        ("model/bias", torch.ones(3).half(), "the checkpoint was changed after it was written: bias has dtype"),
        ("ema/more", torch.ones(2), "the checkpoint does not match the config: 1 of 3 tensors differ in shape"),
        ("optimiser/bias/exp_avg", torch.ones(4), "the checkpoint has an unexpected tensor, optimiser/bias/exp_avg of"),
        (
            "optimiser/bias/exp_avg",
            torch.ones(3).long(),
            "the checkpoint has an unexpected tensor, optimiser/bias/exp_",
        ),
        (
            "optimiser/more/step",
            torch.ones(()),
            "the checkpoint has an unexpected tensor, optimiser/more/step of shape",
        ),
    ],
)
def test_extra_tensors_and_those_of_another_dtype_are_rejected(name: str, tensor: torch.Tensor, problem: str) -> None:
    training = TrainingState.create(nn.Linear(2, 3), make_training_config())
    with pytest.raises(UserError) as caught:
        training.restore({**training.gather_tensors(), name: tensor}, step=1)
    assert str(caught.value).startswith(problem)
