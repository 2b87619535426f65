"""Runs whose reports arrive a step late write the same files as others, also after a signal or a crash."""

import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from copy import deepcopy
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from c2fmae.core import experiment as experiment_module
from c2fmae.core.checkpoint import list_checkpoints, load_checkpoint
from c2fmae.core.distributed import STEP_TIMEOUT, TIMEOUT, World
from c2fmae.core.errors import RunError
from c2fmae.core.experiment import (
    BatchIterator,
    Experiment,
    RunOutcome,
    checkpoint_bytes,
    locked_run_dir,
    run_experiment,
)
from c2fmae.core.experiment_config import ExperimentConfig, SavingConfig, WatchingConfig
from c2fmae.core.loading_speed import LoadTimes
from c2fmae.core.loop import StepLoss, TrainingState
from c2fmae.core.metric_rows import read_rows
from c2fmae.core.run_dir import RunDir
from c2fmae.core.saving import Saver
from c2fmae.core.specs import BackboneSpec, EncoderConfig
from c2fmae.core.training import TrainingConfig, plan_training
from c2fmae.core.watching import RunLogger, is_due

pytestmark = pytest.mark.numeric

NUM_STEPS, BATCH_SIZE = 9, 4
BAD_STEPS = (1, 2, 6)
"""Steps, counted from 0, with a number that is not finite."""


class Numbers:
    """Batches of random numbers."""

    def __init__(self, step: int) -> None:
        self.skip_reasons, self.wait_seconds, self.load_times, self.num_workers = set[str](), 0.0, LoadTimes(), 0
        self.step = step

    def __iter__(self) -> Iterator[Tensor]:
        return self

    def __next__(self) -> Tensor:
        self.step += 1
        return torch.randn(BATCH_SIZE, 3, generator=torch.Generator().manual_seed(self.step))

    def close(self) -> None:
        """End the loading."""


class SquaresTask:
    """A task whose loss is the mean square of the outputs."""

    def __init__(self, bad_steps: Sequence[int], before_step: Callable[[int], object]) -> None:
        self.bad_steps, self.before_step = bad_steps, before_step

    def split(
        self, batch: Tensor, *, num_micro_batches: int, step: int, progress: float, world: World
    ) -> Sequence[Tensor]:
        self.before_step(step)
        if step in self.bad_steps:
            batch[-1] = torch.nan
        return batch.chunk(num_micro_batches)

    def compute_counts(self, micro_batch: Tensor) -> Mapping[str, Tensor]:
        return {"samples": torch.tensor(len(micro_batch))}

    def summarise_counts(self, counts: Mapping[str, int], progress: float) -> Mapping[str, float]:
        return {"samples": counts["samples"]}

    def compute_losses(self, model: nn.Module, micro_batch: Tensor, counts: Mapping[str, Tensor]) -> StepLoss:
        total = (model(micro_batch) - 1).square().sum() / counts["samples"]
        return StepLoss(total, {"squares": total.detach()})

    def sample_keys(self, micro_batch: Tensor) -> Sequence[str]:
        return [f"{float(row[0]):.3f}" for row in micro_batch]


class SquaresExperiment(Experiment):
    """An experiment with everything that steps can change: weights, averages, statistics and random numbers."""

    def __init__(
        self,
        bad_steps: Sequence[int],
        before_step: Callable[[int], object],
        *,
        save_every: int = 4,
        evaluate_every: int = 3,
        **settings: Any,
    ) -> None:
        training = TrainingConfig(
            steps=NUM_STEPS,
            lr=0.1,
            batch_size=BATCH_SIZE,
            micro_batch=2,
            precision="fp32",
            clip=1.0,
            ema=0.8,
            **settings,
        )
        self.config = ExperimentConfig(
            kind="pretraining",
            training=training,
            saving=SavingConfig(steps=save_every, keep_last=99),
            watching=WatchingConfig(held_out_every=evaluate_every),
        )
        self.plan, self.world = plan_training(training, num_samples=2 * BATCH_SIZE, world_size=1), World()
        torch.manual_seed(0)
        self._model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Dropout(0.2), nn.Linear(5, 1))
        self._task = SquaresTask(bad_steps, before_step)

    @property
    def model(self) -> nn.Module:
        return self._model

    @property
    def task(self) -> SquaresTask:
        return self._task

    @contextmanager
    def open_batches(self, step: int) -> Iterator[BatchIterator]:
        with closing(Numbers(step)) as numbers:
            yield cast("BatchIterator", numbers)

    def metadata(self) -> dict[str, Any]:
        backbone = BackboneSpec(encoder=EncoderConfig(name="test_vit"), image_size=(32, 32)).model_dump(mode="json")
        return {
            "kind": "pretraining",
            "backbone": backbone,
            "samples": 8,
            "config": self.config.model_dump(mode="json"),
        }

    def check_broken(self, num_broken: int) -> None:
        assert num_broken == 0

    def is_evaluation_due(self, step: int) -> bool:
        return is_due(step, self.config.watching.held_out_every or 1, NUM_STEPS)

    def evaluate(self, training: TrainingState, run_dir: RunDir, logger: RunLogger, *, is_start: bool = False) -> None:
        rows = read_rows(run_dir.metrics) if is_start else []
        is_logged = any("total" in row and row["step"] == training.step for row in rows)
        if self.is_evaluation_due(training.step) and not is_logged:
            total = sum(tensor.double().sum().item() for tensor in training.gather_tensors().values())
            logger.log_metrics(training.step, {"total": total})

    def write_report(self, run_dir: RunDir) -> None:
        """Write nothing."""


class TeacherTask(SquaresTask):
    """The same task with a teacher."""

    def teacher_momentum(self, step: int) -> float:
        return 0.5 + 0.05 * step


class TeacherExperiment(SquaresExperiment):
    """The same experiment with a teacher of the first two layers instead of averages of all weights."""

    def __init__(self, before_step: Callable[[int], object]) -> None:
        super().__init__(BAD_STEPS, before_step)
        training = self.config.training.model_copy(update={"ema": None})
        self.config = self.config.model_copy(update={"training": training})
        self._task, self._teacher = TeacherTask(BAD_STEPS, before_step), nn.Sequential(*deepcopy(self._model)[:2])

    @property
    def teacher(self) -> nn.Module:
        return self._teacher


def run(
    out: Path,
    *,
    delay: int,
    bad_steps: Sequence[int] = BAD_STEPS,
    before_step: Callable[[int], object] = id,
    resume: bool = False,
    **settings: Any,
) -> RunOutcome:
    """Run the experiment, with reports that are `delay` steps late."""
    with pytest.MonkeyPatch.context() as patch, locked_run_dir(out, World()) as run_dir:
        patch.setattr(experiment_module, "choose_delay", lambda _: delay)
        return run_experiment(SquaresExperiment(bad_steps, before_step, **settings), run_dir, resume=resume)


def read_results(out: Path) -> dict[str, Any]:
    """Return metrics, details of skipped steps, and checkpoints except that of a signal."""
    files = {path.name: path.read_bytes() for path in (out / "skipped").iterdir()}
    results: dict[str, Any] = {"metrics": (out / "metrics.jsonl").read_bytes(), "skipped": files}
    for path in list_checkpoints(out / "checkpoints"):
        checkpoint = load_checkpoint(path)
        if checkpoint.step % 4 == 0 or checkpoint.step == NUM_STEPS:
            tensors = {name: tensor.numpy().tobytes() for name, tensor in checkpoint.tensors.items()}
            results[path.name] = checkpoint.metadata["bad_steps"], tensors
    return results


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the results of a run that reads every report at once."""
    out = tmp_path_factory.mktemp("expected") / "run"
    assert run(out, delay=0) == RunOutcome("finished", NUM_STEPS)
    return read_results(out)


def test_late_reports_do_not_change_the_files_of_a_run(expected: dict[str, Any], tmp_path: Path) -> None:
    assert sorted(expected["skipped"]) == [f"step-0000000{step + 1}-rank-0.json" for step in BAD_STEPS]
    assert expected["metrics"].count(b'"skipped"') == len(BAD_STEPS)
    assert expected["metrics"].count(b'"total"') == NUM_STEPS // 3
    assert [expected[f"step-0000000{step}"][0] for step in (4, 8, 9)] == [0, 0, 0]
    assert run(tmp_path / "late", delay=1) == RunOutcome("finished", NUM_STEPS)
    assert read_results(tmp_path / "late") == expected


def test_the_timeout_of_gpus_is_short_in_steps_and_long_from_a_boundary_to_the_next_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timeouts, seen = [TIMEOUT], list[timedelta]()
    monkeypatch.setattr(World, "set_gpu_timeout", lambda _, timeout: timeouts.append(timeout))
    evaluate, save = SquaresExperiment.evaluate, Saver.save

    def record_and_evaluate(*args: Any, **options: Any) -> None:
        seen.append(timeouts[-1])
        evaluate(*args, **options)

    def record_and_save(*args: Any) -> bool:
        seen.append(timeouts[-1])
        return save(*args)

    monkeypatch.setattr(SquaresExperiment, "evaluate", record_and_evaluate)
    monkeypatch.setattr(Saver, "save", record_and_save)
    steps = list[timedelta]()
    run(tmp_path / "run", delay=1, before_step=lambda _: steps.append(timeouts[-1]))
    assert set(seen) == {TIMEOUT}
    boundaries = {0, 3, 4, 6, 8}  # an evaluation each 3 and a save each 4 steps; a report comes after 2 further steps
    is_long = [step in boundaries or step - 1 in boundaries for step in range(NUM_STEPS)]
    assert steps == [TIMEOUT if is_long[step] else STEP_TIMEOUT for step in range(NUM_STEPS)]


@pytest.mark.parametrize("step", range(NUM_STEPS))
def test_a_run_with_late_reports_saves_on_a_signal_and_resumes_exactly(
    expected: dict[str, Any], tmp_path: Path, step: int
) -> None:
    def stop(current: int) -> None:
        if current == step:
            signal.raise_signal(signal.SIGTERM)

    outcome = run(tmp_path / "run", delay=1, before_step=stop)
    assert outcome.status == ("finished" if step == NUM_STEPS - 1 else "saved-on-signal")
    assert step + 2 <= outcome.step <= step + 3 or outcome.step == NUM_STEPS
    saved = load_checkpoint(list_checkpoints(tmp_path / "run/checkpoints")[-1])
    assert saved.step == outcome.step
    assert saved.metadata["bad_steps"] == {2: 1, 3: 2, 7: 1}.get(saved.step, 0)
    assert run(tmp_path / "run", delay=1, resume=True).status == "finished"
    assert read_results(tmp_path / "run") == expected


def test_a_run_with_a_teacher_resumes_exactly(tmp_path: Path) -> None:
    def stop(current: int) -> None:
        if current == 4:
            signal.raise_signal(signal.SIGTERM)

    def run_with_teacher(name: str, before_step: Callable[[int], object] = id, *, resume: bool = False) -> str:
        with locked_run_dir(tmp_path / name, World()) as run_dir:
            return run_experiment(TeacherExperiment(before_step), run_dir, resume=resume).status

    assert run_with_teacher("complete") == "finished"
    assert run_with_teacher("stopped", stop) == "saved-on-signal"
    assert run_with_teacher("stopped", resume=True) == "finished"
    assert read_results(tmp_path / "stopped") == read_results(tmp_path / "complete")
    checkpoint = load_checkpoint(list_checkpoints(tmp_path / "complete/checkpoints")[-1])
    model, average = checkpoint.tensors_of("model"), checkpoint.tensors_of("ema")
    assert average.keys() == {name for name in model if name[0] in "01"}
    assert average["1.num_batches_tracked"] == model["1.num_batches_tracked"]
    assert not torch.equal(average["0.weight"], model["0.weight"])


def test_the_disk_space_of_checkpoints_is_that_of_their_tensors() -> None:
    for experiment in (SquaresExperiment(BAD_STEPS, id), TeacherExperiment(id)):
        training = TrainingState.create(experiment.model, experiment.config.training, experiment.teacher)
        experiment.model(torch.ones(2, 3)).sum().backward()
        training.optimiser.step()
        tensors = training.named_tensors()
        num_bytes = sum(tensor.nbytes for name, tensor in tensors.items() if not name.endswith("/step"))
        assert checkpoint_bytes(experiment, training) == num_bytes * (99 + 1)


def test_late_requests_are_met_once_and_at_the_next_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = list[int]()
    rare: dict[str, Any] = {"save_every": NUM_STEPS, "evaluate_every": NUM_STEPS}
    is_overdue = property(lambda self: self.saved_step is None and max(steps, default=0) >= 2)
    with monkeypatch.context() as patch:
        patch.setattr(Saver, "is_overdue", is_overdue)
        run(tmp_path / "saved", delay=1, before_step=steps.append, **rare)
    # Requested with the fourth step, whose report is read when the fifth is enqueued.
    assert [path.name for path in list_checkpoints(tmp_path / "saved/checkpoints")] == [
        "step-00000005",
        "step-00000009",
    ]

    def stop(current: int) -> None:
        if current == 2:
            signal.raise_signal(signal.SIGTERM)

    outcome = run(tmp_path / "stopped", delay=1, before_step=stop, **rare)
    assert outcome == RunOutcome("saved-on-signal", 5, 75)


@pytest.mark.parametrize("step", range(1, NUM_STEPS))
def test_a_killed_run_with_late_reports_resumes_exactly(expected: dict[str, Any], tmp_path: Path, step: int) -> None:
    def fail(current: int) -> None:
        if current == step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", delay=1, before_step=fail)
    assert run(tmp_path / "run", delay=1, resume=True).status == "finished"
    assert read_results(tmp_path / "run") == expected


@pytest.mark.parametrize("delay", [0, 1])
def test_too_many_bad_steps_end_a_run_after_their_last_report(tmp_path: Path, delay: int) -> None:
    with pytest.raises(
        RunError, match="not finite in 3 steps in a row, up to step 8. The last checkpoint is step-0000"
    ):
        run(tmp_path / "run", delay=delay, bad_steps=range(5, NUM_STEPS), max_bad_steps=3)
    assert len(list((tmp_path / "run/skipped").iterdir())) == 3
