"""Estimates of `--dry-run`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from c2fmae.core.distributed import World
from c2fmae.core.experiment import Phase
from c2fmae.core.loading_speed import STAGES, LoadingSpeed
from c2fmae.core.loop import TrainingState
from c2fmae.core.training import TrainingPlan
from c2fmae.measure import MeasuredPhase, describe_measurement, measure_run
from c2fmae.methods.masked.batch_masker import MaskedScenes
from c2fmae.methods.masked.task import PretrainingTask
from c2fmae.pretrain import build_pretraining
from c2fmae.recipes.config import load_recipe

CONFIG = load_recipe(
    "c2fmae-debug", ["data.train.options={size: 64, length: 16, difficulty: easy}", "data.held_out=null"]
)


def test_the_estimate_covers_length_time_memory_and_disk_and_writes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "run"
    lines = measure_run(build_pretraining(CONFIG, World()), out).splitlines()
    assert lines[0].startswith("20 steps (10 epochs of 2), 2 of warm-up; batch 8 = 1 process × 8; ")
    assert lines[1].startswith("a step takes ")
    assert lines[2].startswith("the run takes about ")
    assert lines[3].startswith("peak memory of a process: ")
    assert lines[4].endswith(f"GiB are free in {tmp_path}")
    assert lines[5].startswith("without data, reusing one batch, a step takes ")
    assert "A sample takes " in lines[6]
    assert lines[-1] == "an epoch has only 2 steps: for so little data, use a smaller training.batch_size"
    assert not out.exists()


def test_the_estimate_follows_from_the_measured_steps(tmp_path: Path) -> None:
    experiment = build_pretraining(CONFIG, World())
    training = TrainingState.create(experiment.method.model, experiment.config.training)
    times = {"decode": 30.0, "crop": 15.0, "stack": 5.0}
    loading = LoadingSpeed(milliseconds=times, num_workers=0, waited=0.25, ceiling=16.0)
    phases = [MeasuredPhase(Phase("", range(20)), [2.0, 1.0, 3.0], 0.5, loading)]
    lines = describe_measurement(experiment, training, phases, tmp_path).splitlines()
    assert isinstance(experiment.plan, TrainingPlan)
    assert lines[1] == "a step takes 2 s (1 to 3), 4 samples/s, 25% of it waiting for data"
    assert lines[2] == "the run takes about 40 seconds, without held-out losses, probes and figures"
    assert lines[5] == "without data, reusing one batch, a step takes 0.5 s, 16 samples/s"
    assert lines[6] == loading.describe()
    assert lines[6].startswith("Loading limits training, which waits for data about 25% of the time. ")
    weights = sum(parameter.numel() for parameter in experiment.method.model.parameters())
    assert lines[4].startswith(f"checkpoints need {weights * 4 * 3 * 3 / 2**30:.2g} GiB; ")


def test_each_image_size_is_measured_and_counts_with_its_steps(tmp_path: Path) -> None:
    config = CONFIG.override(["method.early_image_sizes=[[0.5, [32, 48]]]"])
    experiment = build_pretraining(config, World())
    assert experiment.phases == [("images of 32×48", range(10)), ("images of 64×64", range(10, 20))]
    shapes = []
    split = type(experiment.task).split

    def record_shape(task: PretrainingTask, batch: list[MaskedScenes], **options: Any) -> Sequence[Any]:
        shapes.append(tuple(batch[0].scenes.maps["rgb"].shape[-2:]))
        return split(task, batch, **options)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(PretrainingTask, "split", record_shape)
        lines = measure_run(experiment, tmp_path / "run").splitlines()
    assert shapes == [(32, 48)] * 12 + [(64, 64)] * 12
    assert lines[1].startswith("images of 32×48, 10 steps: a step takes ")
    assert lines[2].startswith("images of 64×64, 10 steps: a step takes ")
    loading = [
        LoadingSpeed(milliseconds=dict.fromkeys(STAGES, 1.0), num_workers=0, waited=waited, ceiling=8 / seconds)
        for seconds, waited in ((1.0, 0.5), (4.0, 0.1))
    ]
    phases = [
        MeasuredPhase(Phase("a", range(10)), [1.0], 0.5, loading[0]),
        MeasuredPhase(Phase("b", range(10, 15)), [4.0], 3.6, loading[1]),
    ]
    training = TrainingState.create(experiment.method.model, config.training)
    lines = describe_measurement(experiment, training, phases, tmp_path).splitlines()
    assert lines[3].startswith("the run takes about 30 seconds, ")
    assert lines[6].startswith("a, 10 steps: without data, reusing one batch, a step takes 0.5 s, ")
    assert "waits for data about 50% of the time" in lines[7]
