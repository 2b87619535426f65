"""How an experiment goes, whatever it trains: in its folder, by all its processes, to the end or until told to stop."""

import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from torch import nn

from c2fmae.core.checkpoint import list_checkpoints
from c2fmae.core.distributed import World, is_lost_peer_error
from c2fmae.core.errors import RunError, UserError
from c2fmae.core.experiment_config import ExperimentConfig
from c2fmae.core.loop import StepReport, Task, TrainingLoop, TrainingState
from c2fmae.core.progress import NO_LABELS
from c2fmae.core.resume import start_or_resume
from c2fmae.core.run_dir import RunDir, open_run_dir
from c2fmae.core.saving import Saver
from c2fmae.core.signals import StopRequest, catch_signals
from c2fmae.core.trackers import import_tracker
from c2fmae.core.training import TrainingPlan
from c2fmae.core.watching import RunLogger

log = logging.getLogger(__name__)


class BatchIterator(Protocol):
    """Batches one after the other."""

    skip_reasons: set[str]
    """What was wrong with samples that were replaced."""
    wait_seconds: float
    """Time that whoever asks for batches had to wait for them."""

    def __iter__(self) -> Iterator[Any]: ...

    def __next__(self) -> Any: ...


class Experiment(ABC):
    """What is trained, on what, and how it is looked at meanwhile."""

    config: ExperimentConfig
    """Fitted to the data."""
    plan: TrainingPlan
    world: World
    value_labels: ClassVar[Mapping[str, str]] = NO_LABELS
    """Values of a step that the progress display shows beside losses and gradient norm: key → label."""

    @property
    @abstractmethod
    def model(self) -> nn.Module:
        """What learns."""

    @property
    @abstractmethod
    def task(self) -> Task[Any, Any]:
        """How it learns."""

    @abstractmethod
    def open_batches(self, step: int) -> AbstractContextManager[BatchIterator]:
        """Give the batches from a step on: where they are in the data is a function of the step."""

    @abstractmethod
    def metadata(self) -> dict[str, Any]:
        """Return what a checkpoint says beside its tensors: `config`, `classes`, `samples` and more."""

    @abstractmethod
    def check_broken(self, num_broken: int) -> None:
        """End the run where so many samples, over all processes, are more than may be broken."""

    @abstractmethod
    def evaluate(
        self, training: TrainingState, run_dir: RunDir, logger: RunLogger, *, is_resuming: bool = False
    ) -> None:
        """Measure and draw what is due after a step; `is_resuming` where that may have been done before."""

    @abstractmethod
    def write_report(self, run_dir: RunDir) -> None:
        """Write the page about the run."""


@dataclass(frozen=True)
class RunOutcome:
    """How a run ended, and the exit code that says so."""

    status: Literal["finished", "saved-on-signal"]
    step: int
    exit_code: int = 0


@contextmanager
def locked_run_dir(path: Path, world: World) -> Iterator[RunDir]:
    """Open a run's folder: the first process has it to itself, for all."""
    with open_run_dir(path) if world.is_main else nullcontext(RunDir(path)) as run:
        world.barrier()
        yield run


def is_new_run(run_dir: RunDir, world: World) -> bool:
    """Return whether nothing has been learned in a folder yet; the same in all processes."""
    return not world.broadcast_object(bool(list_checkpoints(run_dir.checkpoints)))


def run_experiment(
    experiment: Experiment, run_dir: RunDir, *, resume: bool = False, accept_changes: bool = False
) -> RunOutcome:
    """Take an experiment to its end in a folder, or go on with the one that is there."""
    config, world = experiment.config, experiment.world
    training = TrainingState.create(experiment.model, config.training)
    for name in config.watching.trackers if world.is_main else ():
        import_tracker(name)
    is_finished = start_or_resume(
        training,
        run_dir,
        world,
        config,
        experiment.metadata(),
        total_steps=experiment.plan.steps,
        checkpoint_bytes=checkpoint_bytes(experiment, training),
        is_compiled=config.training.compile,
        resume=resume,
        accept_changes=accept_changes,
    )
    if is_finished:
        return RunOutcome("finished", training.step)
    if world.is_main:
        log.info("%s", experiment.plan)
    try:
        with catch_signals() as stop:
            outcome = train(experiment, training, run_dir, stop)
    except BaseException as error:
        if world.is_main:
            with suppress(UserError):  # on a full disk: what came first is what is to be told
                reason = "another process is gone" if is_lost_peer_error(error) else str(error) or type(error).__name__
                run_dir.write_state("failed", step=training.step, why=reason)
        raise
    if world.is_main:
        run_dir.write_state(outcome.status, step=outcome.step)
        try:
            experiment.write_report(run_dir)
        except Exception as error:  # the page is a view of the run, not the run
            log.warning("%s: could not be written: %s", run_dir.report, error)
    return outcome


def train(experiment: Experiment, training: TrainingState, run_dir: RunDir, stop: StopRequest) -> RunOutcome:
    """Take steps to the end of the plan, or until somebody says stop."""
    config, plan, world = experiment.config, experiment.plan, experiment.world
    loop = TrainingLoop(experiment.task, config.training, plan, world)
    with ExitStack() as stack:
        batches = stack.enter_context(experiment.open_batches(training.step))
        saver = stack.enter_context(Saver(run_dir.checkpoints, config.saving, world, experiment.metadata()))
        logger = stack.enter_context(
            RunLogger(
                run_dir,
                config.watching,
                plan,
                start_step=training.step,
                experiment_config=config.model_dump(mode="json"),
                value_labels=experiment.value_labels,
                is_quiet=not world.is_main,
            )
        )

        def read_flags() -> dict[str, int]:
            return {"stop": bool(stop), "save": saver.is_overdue, "broken": len(batches.skip_reasons)}

        if training.step:
            experiment.evaluate(
                training, run_dir, logger, is_resuming=True
            )  # a run may end between a step and the look that is due
        for report in loop.run(training, logger.time_batches(batches), read_flags):
            logger.log_step(report)
            experiment.check_broken(report.flags["broken"])
            if report.skip_details is not None:
                record_skipped_step(training, run_dir, report, world, max_bad_steps=config.training.max_bad_steps)
            is_requested = report.flags["stop"] or report.flags["save"]
            if is_requested or config.saving.is_save_step(training.step, plan.steps):
                logger.fsync_metrics()
                saver.save(training)
            if report.flags["stop"]:
                return RunOutcome("saved-on-signal", training.step, stop.exit_code)
            experiment.evaluate(training, run_dir, logger)
    return RunOutcome("finished", training.step)


def record_skipped_step(
    training: TrainingState, run_dir: RunDir, report: StepReport, world: World, *, max_bad_steps: int
) -> None:
    """Write down what was in a step that was skipped; too many in a row end the run."""
    name = f"trouble/step-{report.step:08d}-process-{world.rank}.json"
    parts = [
        {key: value if not isinstance(value, float) or isfinite(value) else None for key, value in part.items()}
        for part in report.skip_details or []
    ]
    norm = report.values["grad_norm"]
    details = {"step": report.step, "grad_norm": norm if isfinite(norm) else None, "parts": parts}
    run_dir.write_text(name, json.dumps(details, indent=2) + "\n")
    if training.bad_steps >= max_bad_steps:
        last = list_checkpoints(run_dir.checkpoints)
        last_checkpoint_note = (
            f"The last checkpoint, {last[-1].name}, is good" if last else "There is no checkpoint yet"
        )
        raise RunError(
            f"{training.bad_steps} steps in a row had a loss or gradient that is not finite, the last is step "
            f"{report.step}. {last_checkpoint_note}. {run_dir.path / name} has the samples and losses; try a lower "
            "learning rate, "
            "training.clip=1, or training.precision=fp32"
        )


def checkpoint_bytes(experiment: Experiment, training: TrainingState) -> int:
    """Return the bytes that a run's checkpoints will take: weights, two moments and the average, one more than kept."""
    weights = sum(parameter.numel() * parameter.element_size() for parameter in training.model.parameters())
    saving, copies = experiment.config.saving, 3 + (training.ema is not None)
    num_kept_for_good = experiment.plan.steps // saving.keep_every if saving.keep_every else 0
    return weights * copies * (saving.keep_last + 1 + num_kept_for_good)
