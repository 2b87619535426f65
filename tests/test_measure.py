"""`--dry-run`: what a run would take, without leaving anything behind."""

from pathlib import Path

from c2fmae.core.distributed import World
from c2fmae.core.loop import TrainingState
from c2fmae.core.training import TrainingPlan
from c2fmae.measure import describe_measurement, measure_run
from c2fmae.pretrain import build_pretraining
from c2fmae.recipes.config import load_recipe

CONFIG = load_recipe(
    "c2fmae-debug", ["data.train.options={size: 64, length: 16, difficulty: easy}", "data.held_out=null"]
)


def test_it_says_length_time_memory_and_disk_and_writes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "run"
    lines = measure_run(build_pretraining(CONFIG, World()), out).splitlines()
    assert lines[0].startswith("20 steps (10 epochs of 2), 2 of warm-up; batch 8 = 1 process × 8; ")
    assert lines[1].startswith("a step takes ")
    assert lines[2].startswith("the whole run takes about ")
    assert lines[3].startswith("a process holds ")
    assert lines[4].endswith(f"that are free in {tmp_path}")
    assert lines[-1] == "an epoch has only 2 steps: on so little data a smaller batch learns more"
    assert not out.exists()


def test_its_sums_are_those_of_the_steps_that_were_taken(tmp_path: Path) -> None:
    it = build_pretraining(CONFIG, World())
    training = TrainingState.create(it.method.model, it.config.training)
    lines = describe_measurement(it, training, [2.0, 1.0, 3.0], [0.5, 0.5, 0.5], tmp_path).splitlines()
    assert isinstance(it.plan, TrainingPlan)
    assert lines[1] == "a step takes 2 s (1 to 3), 4 samples/s, 25% of it waiting for data"
    assert lines[2] == "the whole run takes about 40 seconds, without held-out losses and pictures"
    assert lines[5] == "it waits for data: try more data.workers; packed data is the quickest"
    weights = sum(parameter.numel() for parameter in it.method.model.parameters())
    assert lines[4].startswith(f"checkpoints take {weights * 4 * 3 * 3 / 2**30:.2g} GiB of the ")
