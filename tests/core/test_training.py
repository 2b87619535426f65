from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from c2fmae.core.errors import UserError
from c2fmae.core.training import TrainingConfig, TrainingPlan, derive_training_settings, plan_training


def config(**settings: Any) -> TrainingConfig:
    return TrainingConfig(**{"steps": 10, "lr": 1e-3, "batch_size": 8} | settings)


def plan(num_samples: int = 100, processes: int = 1, **settings: Any) -> TrainingPlan:
    return plan_training(config(**settings), num_samples=num_samples, world_size=processes)


@given(st.integers(1, 8), st.integers(1, 96), st.none() | st.integers(1, 120))
def test_micro_batches_are_equal_and_as_few_as_possible(processes: int, rank_batch: int, micro: int | None) -> None:
    batch = processes * rank_batch
    training_plan = plan(num_samples=batch, processes=processes, batch_size=batch, micro_batch=micro)
    assert (training_plan.batch_size, training_plan.batch_size_per_rank) == (batch, rank_batch)
    assert training_plan.batch_size_per_rank % training_plan.num_micro_batches == 0
    assert training_plan.batch_size_per_rank // training_plan.num_micro_batches <= (micro or rank_batch)
    fewer = [number for number in range(1, training_plan.num_micro_batches) if rank_batch % number == 0]
    assert all(rank_batch // number > (micro or rank_batch) for number in fewer)


@given(st.integers(1, 8), st.integers(1, 512), st.floats(1e-5, 1.0))
def test_base_lr_scales_with_the_batch_size(processes: int, rank_batch: int, base: float) -> None:
    batch = processes * rank_batch
    training_plan = plan(num_samples=batch, processes=processes, batch_size=batch, lr=None, base_lr=base)
    assert training_plan.peak_lr == pytest.approx(base * batch / 256)
    assert plan(num_samples=batch, processes=processes, batch_size=batch, lr=base).peak_lr == base


@given(st.integers(1, 500), st.integers(1, 40), st.floats(0.1, 20), st.floats(0, 20))
def test_epochs_convert_to_steps(samples: int, batch: int, epochs: float, warmup: float) -> None:
    assume(batch <= samples)
    steps_per_epoch = samples // batch
    assume(1 <= round(epochs * steps_per_epoch) >= round(warmup * steps_per_epoch))
    training_plan = plan(samples, batch_size=batch, steps=None, epochs=epochs, warmup_epochs=warmup)
    assert (training_plan.steps_per_epoch, training_plan.steps, training_plan.warmup_steps) == (
        steps_per_epoch,
        round(epochs * steps_per_epoch),
        round(warmup * steps_per_epoch),
    )
    in_steps = plan(samples, batch_size=batch, steps=training_plan.steps, warmup_steps=training_plan.warmup_steps)
    assert in_steps == training_plan


@pytest.mark.parametrize("final", [0.0, 0.1])
@pytest.mark.parametrize("warmup", [0, 3, 10])
def test_learning_rate_and_progress_depend_on_the_step_alone(warmup: int, final: float) -> None:
    training_plan = plan(warmup_steps=warmup, final_lr=final)
    if warmup:
        assert [training_plan.lr(step) for step in range(warmup)] == pytest.approx(
            [1e-3 * (step + 1) / warmup for step in range(warmup)]
        )
    if warmup < 10:
        assert training_plan.lr(warmup) == 1e-3
        assert training_plan.lr(10) == pytest.approx(1e-3 * final)
    assert [training_plan.progress(step) for step in range(10)] == [step / 10 for step in range(10)]


def test_schedules_have_milestones_at_fractions_of_the_run() -> None:
    """The schedule of a 1× detection run: 12 epochs, a tenth of the learning rate after 9 and 11 of them."""
    training_plan = plan(
        24,
        steps=None,
        epochs=12,
        warmup_steps=2,
        warmup_start=0.001,
        schedule="steps",
        milestones=(9 / 12, 11 / 12),
        lr=1.0,
    )
    assert (training_plan.steps_per_epoch, training_plan.milestones) == (3, (27, 33))
    expected = [0.001, 0.5005, *[1.0] * 25, *[0.1] * 6, *[0.01] * 3]
    assert [training_plan.lr(step) for step in range(36)] == pytest.approx(expected)
    assert plan(schedule="linear", final_lr=0.2).lr(5) == pytest.approx(0.6e-3)


@pytest.mark.parametrize("milestones", [(0.1, 0.15), (0.5, 0.6), (0.5, 0.9)])
def test_milestones_that_are_no_different_steps_are_rejected(milestones: tuple[float, ...]) -> None:
    config = TrainingConfig(steps=3, lr=1.0, batch_size=2, schedule="steps", milestones=milestones)
    with pytest.raises(UserError, match="of 3 steps are not different steps within the run"):
        plan_training(config, num_samples=8, world_size=1)


@pytest.mark.parametrize(
    ("settings", "where", "expected"),
    [
        (
            {},
            {"num_samples": 7},
            "training.batch_size: the data has only 7 samples, got a batch of 8. Set it lower",
        ),
        (
            {},
            {"num_samples": 100, "processes": 3},
            "training.batch_size: expected a multiple of the 3 processes, got 8. Change one of them",
        ),
        (
            {"steps": None, "epochs": 0.01},
            {"num_samples": 100},
            "training.epochs: 0.01 × 12 steps is less than one step. Set it higher",
        ),
        (
            {"warmup_steps": 11},
            {"num_samples": 100},
            "training.warmup_steps: the warm-up has 11 steps, but the run only 10. Set it lower",
        ),
        (
            {"warmup_epochs": 1.0},
            {"num_samples": 100},
            "training.warmup_epochs: the warm-up has 12 steps, but the run only 10. Set it lower",
        ),
    ],
)
def test_plans_that_do_not_fit_the_data_are_rejected(
    settings: dict[str, Any], where: dict[str, int], expected: str
) -> None:
    with pytest.raises(UserError) as caught:
        plan(**where, **settings)
    assert str(caught.value) == expected


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"lr": 1e-3}, "expected either epochs or steps. Set the other to null"),
        ({"lr": 1e-3, "steps": 1, "epochs": 1.0}, "expected either epochs or steps. Set the other to null"),
        ({"steps": 1}, "expected either base_lr or lr. Set the other to null"),
        ({"steps": 1, "lr": 1.0, "base_lr": 1.0}, "expected either base_lr or lr. Set the other to null"),
        (
            {"steps": 1, "lr": 1.0, "warmup_steps": 1, "warmup_epochs": 1.0},
            "expected either warmup_epochs or warmup_steps. Set the other to null",
        ),
        ({"steps": 0, "lr": 1.0}, "steps: input should be greater than or equal to 1, got 0"),
        ({"steps": 1, "lr": 1.0, "ema": 1}, "ema: input should be less than 1, got 1"),
        ({"steps": 1, "lr": 1.0, "clip": 0}, "clip: input should be greater than 0, got 0"),
        ({"steps": 1, "lr": 1.0, "layer_decay": 0}, "layer_decay: input should be greater than 0, got 0"),
        (
            {"steps": 1, "lr": 1.0, "schedule": "steps"},
            "milestones: are for schedule=steps, which needs them, got schedule=steps and 0 milestones. Change one of "
            "them",
        ),
        (
            {"steps": 1, "lr": 1.0, "milestones": [0.5]},
            "milestones: are for schedule=steps, which needs them, got schedule=cosine and 1 milestone. Change one of "
            "them",
        ),
        (
            {"steps": 1, "lr": 1.0, "schedule": "steps", "milestones": [0.9, 0.5]},
            "milestones: expected increasing fractions of the run, got [0.9, 0.5]",
        ),
        (
            {"steps": 1, "lr": 1.0, "schedule": "steps", "milestones": [0.9], "final_lr": 0.1},
            "final_lr: is for the schedules cosine and linear, got schedule=steps. Set it to 0",
        ),
        ({"steps": 1, "lr": 1.0, "final_lr": 1.5}, "final_lr: input should be less than or equal to 1, got 1.5"),
        (
            {"steps": 1, "lr": 1.0, "precision": "fp16"},
            "precision: expected 'auto', 'bf16', 'bf16-stream' or 'fp32', got 'fp16'. Did you mean 'bf16'?",
        ),
    ],
)
def test_invalid_training_settings_are_rejected(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError) as caught:
        TrainingConfig.from_dict(settings, source="training")
    assert str(caught.value) == f"training: {expected}"


def test_a_plan_is_printed_in_one_line() -> None:
    small = plan(num_samples=100)
    assert str(small) == (
        "10 steps (0.8333 epochs of 12), 0 of warm-up; batch 8 = 1 process × 8; learning rate up to 0.001"
    )
    large = plan(
        num_samples=10_000,
        processes=4,
        batch_size=512,
        micro_batch=32,
        steps=None,
        epochs=100,
        lr=None,
        base_lr=1e-4,
        warmup_epochs=5,
    )
    assert str(large) == (
        "1,900 steps (100 epochs of 19), 95 of warm-up; batch 512 = 4 processes × 128 in 4 micro-batches; "
        "learning rate up to 0.0002"
    )


PAPER = {"epochs": 400, "base_lr": 1e-4, "warmup_epochs": 40}
SHORT = {"steps": 1500, "lr": 1e-3, "warmup_steps": 75}


@pytest.mark.parametrize(
    ("settings", "overrides", "derived"),
    [
        (PAPER, {"steps": 1000}, {"epochs": None, "warmup_epochs": None, "warmup_steps": 100}),
        (PAPER, {"epochs": 10}, {"warmup_epochs": 1.0}),
        (PAPER, {"epochs": 1600}, {}),  # longer, with the warm-up of the shorter run
        (PAPER, {"lr": 1e-3}, {"base_lr": None}),
        (PAPER, {"batch_size": 64}, {}),
        (SHORT, {"steps": 5}, {"warmup_steps": 0}),
        (SHORT, {"steps": 3000}, {}),
        (SHORT, {"epochs": 2}, {"steps": None, "warmup_steps": None, "warmup_epochs": 0.1}),
        (SHORT, {"base_lr": 1e-4}, {"lr": None}),
        (SHORT, {"steps": None, "epochs": 2}, {"warmup_steps": None, "warmup_epochs": 0.1}),
        # a warm-up that is set too
        (PAPER, {"steps": 1000, "warmup_steps": 7}, {"epochs": None, "warmup_epochs": None}),
        (SHORT, {"steps": 5, "warmup_steps": 2}, {}),
        (PAPER, {"epochs": None, "steps": 1000, "warmup_epochs": None}, {}),
        # values that validation rejects
        (SHORT, {"steps": "many"}, {}),
        ({"steps": 0, "warmup_steps": 1}, {"steps": 5}, {}),
    ],
)
def test_a_new_length_or_learning_rate_replaces_its_alternative(
    settings: dict[str, Any], overrides: dict[str, Any], derived: dict[str, Any]
) -> None:
    assert derive_training_settings(settings, overrides) == derived


def test_blocks_are_compiled_on_a_gpu_by_default() -> None:
    assert [config().choose_compiled_parts(device) for device in ("cpu", "cuda")] == ["off", "blocks"]
    for parts in ("off", "blocks", "model"):
        assert config(compile=parts).choose_compiled_parts("cuda") == parts


@pytest.mark.parametrize(("written", "expected"), [(False, "off"), (True, "model")])
def test_a_boolean_is_read_as_the_name_of_what_is_compiled(written: bool, expected: str) -> None:
    assert config(compile=written).compile == expected
