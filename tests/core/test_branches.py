"""Training with a teacher, state that changes after a step, held parameters, and losses over the global batch."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.multiprocessing.spawn import spawn

from c2fmae.core.distributed import gather_rows, gather_rows_with_gradient, sum_over_ranks
from c2fmae.core.errors import UserError
from c2fmae.core.loop import StepReport, TrainingLoop, TrainingState
from c2fmae.core.training import TrainingConfig
from tests.core import branch_processes
from tests.core.branch_processes import (
    BATCH_SIZE,
    NAN_CASE,
    NUM_STEPS,
    SHARED_CASES,
    Branch,
    BranchCase,
    BranchTask,
    StepHistory,
    Student,
)

pytestmark = pytest.mark.numeric

Tensors = Mapping[str, Tensor]
TEACHER_NAMES = ["encoder.weight", "encoder.bias", "projector.weight"]


def same(actual: Tensors, expected: Tensors) -> bool:
    return actual.keys() == expected.keys() and all(torch.equal(actual[name], expected[name]) for name in expected)


def component(tensors: Tensors, name: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}/"): tensor for key, tensor in tensors.items() if key.startswith(f"{name}/")}


def assert_close(actual: StepHistory, expected: StepHistory) -> None:
    """Compare the values of all steps, and all tensors after each."""
    for mine, ours in zip(actual[0], expected[0], strict=True):
        assert list(mine.values) == list(ours.values)
        assert mine.values == pytest.approx(ours.values, rel=1e-9, abs=1e-9)
    for theirs, others in zip(actual[1], expected[1], strict=True):
        assert theirs.keys() == others.keys()
        for name, tensor in theirs.items():
            torch.testing.assert_close(tensor, others[name], rtol=1e-9, atol=1e-9)


def test_accumulated_micro_batches_equal_one_batch() -> None:
    case = BranchCase(num_held_steps=2)
    settings: dict[str, Any] = {"clip_each": 0.1, "weight_decay": 0.1, "final_weight_decay": 0.5}
    assert_close(replace(case, num_micro_batches=4).run(**settings), case.run(**settings))


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Return the results of both ranks."""
    folder = tmp_path_factory.mktemp("branches")
    spawn(branch_processes.run_rank, args=(folder,), nprocs=branch_processes.WORLD_SIZE)
    return [torch.load(folder / f"{rank}.pt") for rank in range(branch_processes.WORLD_SIZE)]


@pytest.mark.unchecked
def test_two_processes_equal_one_batch(ranks: list[Any]) -> None:
    for index, case in enumerate(SHARED_CASES):
        expected = replace(case, num_micro_batches=1).run(clip_each=0.1)
        for runs, *_ in ranks:
            reports, tensors = runs[index]
            assert_close(([StepReport(**report) for report in reports], tensors), expected)


@pytest.mark.unchecked
def test_both_ranks_have_the_same_bits_and_skip_the_same_step(ranks: list[Any]) -> None:
    for (first, firsts), (second, seconds) in zip(ranks[0][0], ranks[1][0], strict=True):
        assert [report["values"] for report in first[3:]] == [report["values"] for report in second[3:]]
        assert all(same(*each) for each in zip(firsts, seconds, strict=True))
    reports, tensors = ranks[0][0][-1]
    assert [report["skip_details"] is None for report in reports] == [True, True, False, True, True]
    assert same(tensors[2], tensors[1])
    assert not same(tensors[3], tensors[2])


@pytest.mark.unchecked
def test_collectives_and_their_gradients_equal_those_of_torch(ranks: list[Any]) -> None:
    for _, comparisons, _ in ranks:
        assert list(comparisons) == ["gather", "gradient of gather", "sum", "gradient of sum"]
        for ours, theirs in comparisons.values():
            torch.testing.assert_close(ours, theirs, rtol=1e-14, atol=1e-14)


@pytest.mark.unchecked
def test_of_all_buffers_only_running_statistics_are_sent(ranks: list[Any]) -> None:
    assert [buffers for *_, buffers in ranks] == [[0.0, 0.0], [1.0, 0.0]]


def test_collectives_of_a_single_process_return_their_input() -> None:
    rows = torch.ones(2, 3, requires_grad=True)
    assert gather_rows_with_gradient(rows) is rows
    assert sum_over_ranks(rows) is rows
    assert torch.equal(gather_rows(rows), rows)
    assert not gather_rows(rows).requires_grad


def test_a_teacher_is_a_copy_that_shares_nothing_with_the_model() -> None:
    training, task, _ = BranchCase().build()
    teacher, student = task.teacher, dict(task.student.named_parameters())
    assert teacher is not None
    assert training.ema is not None
    assert list(training.ema) == list(training.averaged) == TEACHER_NAMES
    for name, parameter in teacher.named_parameters():
        assert training.ema[name] is parameter
        assert training.averaged[name] is student[name]
        assert torch.equal(parameter, student[name])
        assert not parameter.requires_grad
    pointers = {parameter.data_ptr() for parameter in teacher.parameters()}
    assert pointers.isdisjoint(parameter.data_ptr() for parameter in student.values())
    assert not teacher.training
    optimised = {id(parameter) for group in training.optimiser.param_groups for parameter in group["params"]}
    assert optimised == {id(parameter) for parameter in student.values()}


def test_a_teacher_follows_its_recurrence() -> None:
    case = BranchCase()
    training, task, loop = case.build()
    assert task.teacher is not None
    expected = {name: parameter.clone() for name, parameter in task.teacher.named_parameters()}
    for report in loop.run(training, case.draw_batches()):
        momentum = task.teacher_momentum(report.step - 1)
        for name, parameter in task.student.named_parameters():
            if name in expected:
                expected[name] = momentum * expected[name] + (1 - momentum) * parameter.detach()
        for name, parameter in task.teacher.named_parameters():
            torch.testing.assert_close(parameter, expected[name], rtol=1e-14, atol=1e-14)
            assert not torch.equal(parameter, task.student.get_parameter(name))
        assert not task.teacher.training
        assert task.student.training


def test_state_is_updated_from_the_sums_of_the_global_batch() -> None:
    case = BranchCase(num_micro_batches=2)
    training, task, loop = case.build()
    assert task.teacher is not None
    centre = torch.zeros(4, dtype=torch.float64)
    steps = loop.run(training, case.draw_batches())
    for batch in case.draw_batches():
        centre = 0.9 * centre + 0.1 * task.teacher(batch[:, 1]).mean(dim=0)  # of the teacher before the step
        report = next(steps)
        torch.testing.assert_close(task.student.centre, centre, rtol=1e-14, atol=1e-14)
        assert report.values["rows"] == BATCH_SIZE
        assert report.values["accuracy"] * BATCH_SIZE == pytest.approx(round(report.values["accuracy"] * BATCH_SIZE))
        assert list(report.values)[-4:] == ["loss/contrast", "grad_norm", "accuracy", "rows"]


@pytest.mark.parametrize("delay", [0, 1])
@pytest.mark.parametrize("case", [NAN_CASE, BranchCase(infinite_sums_at=2, dtype=torch.float32)])
def test_a_step_that_is_not_finite_changes_neither_teacher_nor_state(case: BranchCase, delay: int) -> None:
    reports, tensors = case.run()
    assert [report.skip_details is None for report in reports] == [True, True, False, True, True]
    assert same(tensors[2], tensors[1])
    for part in ("model", "optimiser", "ema"):
        assert not same(component(tensors[3], part), component(tensors[2], part))
    assert not torch.equal(tensors[3]["model/centre"], tensors[2]["model/centre"])
    assert all(tensor.isfinite().all() for tensor in tensors[-1].values())
    late, late_tensors = replace(case, delay=delay).run()
    assert repr(late) == repr(reports)
    assert same(late_tensors[-1], tensors[-1])


def test_a_step_reads_nothing_back_from_the_device() -> None:
    case = BranchCase(num_held_steps=1, delay=2, dtype=torch.float32)
    with FakeTensorMode():  # tensors without data, which cannot be read
        training, _, loop = case.build(clip_each=1.0, final_weight_decay=0.5)
        with pytest.raises(DataDependentOutputException):  # the report of the first step
            next(loop.run(training, [torch.ones(BATCH_SIZE, 2, 6)] * NUM_STEPS))
    assert training.step == 3


def test_a_restored_training_ends_in_the_same_bits() -> None:
    case = BranchCase(num_held_steps=3, dtype=torch.float32)
    settings: dict[str, Any] = {"final_weight_decay": 0.5}
    reports, tensors = case.run(**settings)
    assert list(component(tensors[0], "ema")) == TEACHER_NAMES
    for step in range(1, NUM_STEPS):
        training, task, loop = case.build(**settings)
        training.restore(tensors[step - 1], step=step)
        assert task.teacher is not None
        assert same(dict(task.teacher.named_parameters()), component(tensors[step - 1], "ema"))
        rest = list(loop.run(training, list(case.draw_batches())[step:]))
        assert [report.values for report in rest] == [report.values for report in reports[step:]]
        assert same(training.gather_tensors(), tensors[-1])


def test_a_checkpoint_without_the_teacher_gives_it_the_weights_of_the_model() -> None:
    training, task, _ = BranchCase().build()
    assert task.teacher is not None
    tensors = {name: tensor + 1 for name, tensor in training.gather_tensors().items() if not name.startswith("ema/")}
    training.restore(tensors, step=1)
    assert same(dict(task.teacher.named_parameters()), {name: tensors[f"model/{name}"] for name in TEACHER_NAMES})


def test_a_teacher_of_another_shape_is_rejected() -> None:
    training, *_ = BranchCase().build()
    tensors = {**training.gather_tensors(), "ema/encoder.bias": torch.zeros(7, dtype=torch.float64)}
    with pytest.raises(UserError, match="1 of 3 tensors differ in shape, for example encoder.bias"):
        training.restore(tensors, step=1)


def test_held_parameters_neither_move_nor_decay_nor_count() -> None:
    case = BranchCase(num_held_steps=2)
    training, task, loop = case.build(weight_decay=0.5)
    before = {name: parameter.detach().clone() for name, parameter in task.student.predictor.named_parameters()}
    is_held, norms = [], []
    for report in loop.run(training, case.draw_batches()):
        is_held.append(same(dict(task.student.predictor.named_parameters()), before))
        names = {name.rpartition("/")[0] for name in component(training.named_tensors(), "optimiser")}
        assert ("predictor.weight" in names) == (report.step > 2)
        norms.append(report.values["grad_norm"])
    assert is_held == [True, True, False, False, False]
    assert 0 < norms[0] < replace(case, num_held_steps=0).run()[0][0].values["grad_norm"]


def test_weight_decay_changes_in_decayed_groups_only() -> None:
    case = BranchCase()
    training, _, loop = case.build(weight_decay=0.04, final_weight_decay=0.4)
    decays = []
    for _ in loop.run(training, case.draw_batches()):
        groups = {group["name"]: group["weight_decay"] for group in training.optimiser.param_groups}
        assert groups["not decayed"] == 0
        decays.append(groups["decayed"])
    cosine = torch.cos(torch.pi * torch.arange(NUM_STEPS, dtype=torch.float64) / NUM_STEPS)
    assert decays[0] == 0.04
    assert decays == pytest.approx((0.4 + 0.5 * (0.04 - 0.4) * (1 + cosine)).tolist())


def test_each_gradient_is_clipped_to_its_own_norm() -> None:
    gradients = []
    for clip in (None, 3.0, 1e3):
        training, task, loop = BranchCase().build(clip_each=clip, betas=(0.0, 0.95))  # moments are gradients
        next(loop.run(training, BranchCase().draw_batches()))
        moments = component(training.named_tensors(), "optimiser")
        gradients.append({name: moments[f"{name}/exp_avg"] for name, _ in task.student.named_parameters()})
    norms = {name: gradient.norm() for name, gradient in gradients[0].items()}
    assert 1 < min(norms.values()) < 3 < max(norms.values())
    for name, gradient in gradients[0].items():
        clipped = gradient * torch.clamp(3 / (norms[name] + 1e-6), max=1)
        torch.testing.assert_close(gradients[1][name], clipped, rtol=1e-12, atol=0)
    assert same(gradients[2], gradients[0])


def test_a_teacher_excludes_other_averages_and_sharding() -> None:
    for settings, problem in (
        (
            {"ema": 0.99},
            "training.ema: a method with a teacher has averaged weights, those of its teacher (expected null, got "
            "0.99). Set it to null",
        ),
        (
            {"sharded": True},
            "training.sharded: a method with a teacher cannot be sharded (expected false, got true). Set it to false",
        ),
    ):
        config = TrainingConfig(steps=1, lr=1.0, **settings)
        with pytest.raises(UserError) as caught:
            TrainingState.create(Student(), config, Branch())
        assert str(caught.value) == problem
        assert (TrainingState.create(Student(), config).ema is None) == (config.ema is None)


def test_a_teacher_that_is_not_a_part_of_the_model_is_rejected() -> None:
    student, config = Student(), TrainingConfig(steps=1, lr=1.0)
    shared = Branch()
    shared.encoder.bias = student.encoder.bias
    for teacher, problem in (
        (nn.Linear(6, 5), "a parameter weight, but the model has none of its name and shape"),
        (nn.ModuleDict({"encoder": nn.Linear(6, 1)}), "a parameter encoder.weight, but the model has none of its name"),
        (shared, "the teacher shares its parameter encoder.bias with the model"),
    ):
        with pytest.raises(ValueError, match=problem):
            TrainingState.create(student, config, teacher)


class MomentumlessTask:
    """A task that has a teacher and no momentum for it."""

    def __init__(self, task: BranchTask) -> None:
        self.split, self.compute_counts, self.compute_losses = task.split, task.compute_counts, task.compute_losses
        self.summarise_counts, self.sample_keys = task.summarise_counts, task.sample_keys


def test_a_teacher_without_momentum_is_rejected() -> None:
    training, task, loop = BranchCase().build()
    loop = TrainingLoop(MomentumlessTask(task), loop.config, loop.plan)
    with pytest.raises(ValueError, match="MomentumlessTask has a teacher, but no method teacher_momentum"):
        next(loop.run(training, BranchCase().draw_batches()))


def test_averages_of_a_setting_need_no_momentum() -> None:
    case = BranchCase(has_teacher=False)
    _, tensors = case.run(ema=0.75)
    first, second = tensors[:2]
    for name, average in component(second, "ema").items():
        expected = 0.75 * first[f"ema/{name}"] + 0.25 * second[f"model/{name}"]
        torch.testing.assert_close(average, expected, rtol=1e-14, atol=1e-14)
