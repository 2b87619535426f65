"""Estimates of `--dry-run`."""

from pathlib import Path

from c2fmae.core.distributed import World
from c2fmae.core.loading_speed import LoadingSpeed
from c2fmae.core.loop import TrainingState
from c2fmae.core.training import TrainingPlan
from c2fmae.measure import describe_measurement, measure_run
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
    lines = describe_measurement(experiment, training, [2.0, 1.0, 3.0], 0.5, loading, tmp_path).splitlines()
    assert isinstance(experiment.plan, TrainingPlan)
    assert lines[1] == "a step takes 2 s (1 to 3), 4 samples/s, 25% of it waiting for data"
    assert lines[2] == "the run takes about 40 seconds, without held-out losses, probes and figures"
    assert lines[5] == "without data, reusing one batch, a step takes 0.5 s, 16 samples/s"
    assert lines[6] == loading.describe()
    assert lines[6].startswith("Loading limits training, which waits for data about 25% of the time. ")
    weights = sum(parameter.numel() for parameter in experiment.method.model.parameters())
    assert lines[4].startswith(f"checkpoints need {weights * 4 * 3 * 3 / 2**30:.2g} GiB; ")
