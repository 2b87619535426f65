"""Experiments: start or resume in a run directory, train, evaluate, save checkpoints and write a report."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, TypeVar, get_args

from torch import Tensor, nn

from c2fmae.core.checkpoint import list_checkpoints, step_name
from c2fmae.core.compilation import run_eagerly
from c2fmae.core.distributed import STEP_TIMEOUT, TIMEOUT, World, is_lost_peer_error
from c2fmae.core.errors import RunError, UserError
from c2fmae.core.experiment_config import ExperimentConfig
from c2fmae.core.failures import describe_failure
from c2fmae.core.json_file import write_json
from c2fmae.core.loading_speed import LoadTimes
from c2fmae.core.loop import StepReport, Task, TrainingLoop, TrainingState, choose_delay
from c2fmae.core.precision import Precision, choose_precision
from c2fmae.core.progress import NO_LABELS
from c2fmae.core.resume import start_or_resume
from c2fmae.core.run_dir import RUN_ID_KEY, RunDir, open_run_dir
from c2fmae.core.saving import Saver
from c2fmae.core.signals import StopRequest, TestStopped, catch_signals
from c2fmae.core.threads import fitting_threads
from c2fmae.core.trackers import import_tracker
from c2fmae.core.training import TrainingPlan
from c2fmae.core.watching import RunLogger
from c2fmae.core.yaml_file import read_yaml

log = logging.getLogger(__name__)

C = TypeVar("C", bound=ExperimentConfig)


class BatchIterator(Protocol):
    """An iterator over batches."""

    skip_reasons: set[str]
    """Reasons why samples were skipped and replaced, one for each."""
    wait_seconds: float
    """Total time that the consumer waited for batches."""
    load_times: LoadTimes
    """Time of each stage of loading up to now."""
    num_workers: int
    """Number of processes that load batches."""

    def __iter__(self) -> Iterator[Any]: ...

    def __next__(self) -> Any: ...


class Phase(NamedTuple):
    """A part of a run in which all batches have equal shapes."""

    description: str
    """What differs from other phases, such as the size of images; empty if there is only one."""
    steps: range
    """Its steps, counted from 0."""


class Experiment(ABC):
    """Model, task, data and evaluation of a run."""

    config: ExperimentConfig
    """The config, with classes and channels filled in from the data."""
    plan: TrainingPlan
    world: World
    value_labels: ClassVar[Mapping[str, str]] = NO_LABELS
    """Values of a step that the progress display shows beside losses and gradient norm: key → label."""

    @property
    @abstractmethod
    def model(self) -> nn.Module:
        """The model that is trained."""

    @property
    def teacher(self) -> nn.Module | None:
        """A module whose parameters are averages of those of the model with the same names. By default there is none.

        Its task then is a `TeacherTask`.
        """
        return None

    @property
    @abstractmethod
    def task(self) -> Task[Any, Any]:
        """The task that defines its loss."""

    @abstractmethod
    def open_batches(self, step: int) -> AbstractContextManager[BatchIterator]:
        """Open an iterator over batches that starts at a step. The step alone determines the position in the data."""

    @property
    def phases(self) -> list[Phase]:
        """The parts of the run in which all batches have equal shapes, in its order."""
        return [Phase("", range(self.plan.steps))]

    @abstractmethod
    def metadata(self) -> dict[str, Any]:
        """Return the metadata of checkpoints: `kind`, `backbone`, `config`, `samples` and more; see `RunInfo`."""

    @abstractmethod
    def check_broken(self, num_broken: int) -> None:
        """Raise a `UserError` if this many broken samples, over all ranks, are more than the config allows."""

    @abstractmethod
    def is_evaluation_due(self, step: int) -> bool:
        """Return whether to evaluate the model or to draw figures after a step."""

    @abstractmethod
    def evaluate(self, training: TrainingState, run_dir: RunDir, logger: RunLogger, *, is_start: bool = False) -> None:
        """Evaluate the model and draw figures, if they are due after this step.

        `is_start` is true before the first step of a new or resumed run: the evaluation of this step may exist already.
        """

    @abstractmethod
    def write_report(self, run_dir: RunDir) -> None:
        """Write the HTML page about the run."""


@dataclass(frozen=True)
class RunOutcome:
    """How a run ended, with the exit code for it."""

    status: Literal["finished", "saved-on-signal"]
    step: int
    exit_code: int = 0


@contextmanager
def locked_run_dir(path: Path, world: World) -> Iterator[RunDir]:
    """Open a run directory. The main process locks it for all ranks."""
    with open_run_dir(path) if world.is_main else nullcontext(RunDir(path)) as run_dir:
        world.barrier()
        yield run_dir


def is_new_run(run_dir: RunDir, world: World) -> bool:
    """Return whether a run directory has no checkpoints yet; the same on all ranks."""
    return not world.broadcast_object(bool(list_checkpoints(run_dir.checkpoints)))


def resolve_precision(config: C, run_dir: RunDir, world: World) -> C:
    """Return a config in which `training.precision` is that of the run in the directory, or fits this machine.

    A run keeps the precision that it started with, also on another machine.
    """
    if config.training.precision != "auto":
        return config
    precision = None
    if world.is_main:
        stored = read_yaml(run_dir.config_path).get("training") if run_dir.is_started else None
        precision = stored.get("precision") if isinstance(stored, Mapping) else None
        precision = precision if precision in get_args(Precision) else choose_precision("auto", world.device.type)
    training = config.training.model_copy(update={"precision": world.broadcast_object(precision)})
    return config.model_copy(update={"training": training})


def run_experiment(
    experiment: Experiment, run_dir: RunDir, *, resume: bool = False, accept_changes: bool = False
) -> RunOutcome:
    """Run an experiment in a run directory. With `resume`, continue the run that the directory contains."""
    recorded = run_dir.read_environment().get("torch", {}).get("threads") if resume else None
    with fitting_threads(experiment.world, recorded):
        return _start_and_train(experiment, run_dir, resume=resume, accept_changes=accept_changes)


def _start_and_train(experiment: Experiment, run_dir: RunDir, *, resume: bool, accept_changes: bool) -> RunOutcome:
    config, world = experiment.config, experiment.world
    training = TrainingState.create(experiment.model, config.training, experiment.teacher)
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
        compiled_parts=config.training.choose_compiled_parts(world.device.type),
        resume=resume,
        accept_changes=accept_changes,
    )
    if is_finished:
        if world.is_main and not run_dir.report.exists():  # the run may have been killed just before its page
            write_report(experiment, run_dir)
        return RunOutcome("finished", training.step)
    if world.is_main:
        log.info("%s", experiment.plan)
    try:
        with catch_signals() as stop:
            outcome = train(experiment, training, run_dir, stop)
    except BaseException as error:
        if world.is_main:
            with suppress(UserError):  # on a full disk, the first error is the one to report
                reason = describe_failure(error) or str(error) or type(error).__name__
                reason = "another process failed" if is_lost_peer_error(error) else reason
                run_dir.write_state("failed", step=training.step, why=reason)
        raise
    if world.is_main:
        run_dir.write_state(outcome.status, step=outcome.step)
        write_report(experiment, run_dir)
    return outcome


def write_report(experiment: Experiment, run_dir: RunDir) -> None:
    """Write the page about a run, or warn: the run itself is complete without it."""
    try:
        experiment.write_report(run_dir)
    except Exception as error:
        log.warning("%s: could not be written: %s", run_dir.report, error)


def train(experiment: Experiment, training: TrainingState, run_dir: RunDir, stop: StopRequest) -> RunOutcome:
    """Train to the end of the plan, or until a stop is requested."""
    config, plan, world, start_step = experiment.config, experiment.plan, experiment.world, training.step
    metadata = {**experiment.metadata(), RUN_ID_KEY: run_dir.read_run_id()}
    loop = TrainingLoop(experiment.task, config.training, plan, world, choose_delay(world.device))
    requests: set[str] = set()  # in reports since the last boundary
    with ExitStack() as stack:
        batches = stack.enter_context(experiment.open_batches(training.step))
        saver = stack.enter_context(Saver(run_dir.checkpoints, config.saving, world, metadata))
        logger = stack.enter_context(
            RunLogger(
                run_dir,
                config.watching,
                plan,
                start_step=start_step,
                experiment_config=config.model_dump(mode="json"),
                value_labels=experiment.value_labels,
                is_quiet=not world.is_main,
            )
        )

        def read_flags() -> dict[str, int]:
            return {"stop": bool(stop), "save": saver.is_overdue, "broken": len(batches.skip_reasons)}

        def is_boundary(step: int) -> bool:
            is_save_step = config.saving.is_save_step(step, plan.steps)
            return bool(requests) or is_save_step or experiment.is_evaluation_due(step)

        def save(*, is_required: bool) -> None:
            logger.fsync_metrics()
            is_saved = saver.save(training)
            if not is_saved and is_required:
                raise _unsaved_error(training.step, last_saved_step=saver.saved_step or start_step)

        def evaluate(*, is_start: bool = False) -> None:
            with run_eagerly():  # other batch sizes than in training would be compiled too
                experiment.evaluate(training, run_dir, logger, is_start=is_start)

        try:
            evaluate(is_start=True)
            for report in loop.run(training, logger.time_batches(batches), read_flags, is_boundary):
                world.set_gpu_timeout(STEP_TIMEOUT)
                logger.log_step(report)
                experiment.check_broken(report.flags["broken"])
                if report.skip_details is not None:
                    record_skipped_step(training, run_dir, report, world, max_bad_steps=config.training.max_bad_steps)
                requests |= {name for name in ("stop", "save") if report.flags[name]}
                if report.step < training.step:  # a later step is enqueued: this one is no boundary
                    continue
                world.set_gpu_timeout(TIMEOUT)  # the other ranks may wait in the next step for the main process
                if requests or config.saving.is_save_step(training.step, plan.steps):
                    save(is_required="stop" in requests or training.step == plan.steps)
                if "stop" in requests:
                    return RunOutcome("saved-on-signal", training.step, stop.exit_code)
                requests.clear()
                evaluate()
        except TestStopped:  # between two steps; a resumed run begins with this test
            if training.step > start_step:
                save(is_required=True)
            return RunOutcome("saved-on-signal", training.step, stop.exit_code)
    return RunOutcome("finished", training.step)


def _unsaved_error(step: int, *, last_saved_step: int) -> RunError:
    last = f"The last checkpoint is {step_name(last_saved_step)}" if last_saved_step else "There is no checkpoint"
    return RunError(
        f"the weights are not finite after step {step}, so they were not saved. {last}. Resume with --accept-changes "
        "and a lower learning rate, training.clip=1 or training.precision=fp32"
    )


def record_skipped_step(
    training: TrainingState, run_dir: RunDir, report: StepReport, world: World, *, max_bad_steps: int
) -> None:
    """Write the samples and losses of a skipped step to a file. Raise a `RunError` after too many steps in a row."""
    path = run_dir.path / "skipped" / f"{step_name(report.step)}-rank-{world.rank}.json"
    micro_batches = [
        {key: _null_if_not_finite(value) for key, value in details.items()} for details in report.skip_details or []
    ]
    grad_norm = _null_if_not_finite(report.values["grad_norm"])
    write_json(path, {"step": report.step, "grad_norm": grad_norm, "micro_batches": micro_batches})
    if training.bad_steps >= max_bad_steps:
        checkpoints = list_checkpoints(run_dir.checkpoints)
        last = f"The last checkpoint is {checkpoints[-1].name}" if checkpoints else "There is no checkpoint yet"
        raise RunError(
            f"the loss or gradient was not finite in {training.bad_steps} steps in a row, up to step {report.step}. "
            f"{last}. {path} lists samples and losses. Resume with a lower learning rate, training.clip=1 or "
            "training.precision=fp32"
        )


def _null_if_not_finite(value: Any) -> Any:
    return None if isinstance(value, float) and not isfinite(value) else value


def checkpoint_bytes(experiment: Experiment, training: TrainingState) -> int:
    """Return the disk space in bytes for all checkpoints of a run, and one more during a save.

    A checkpoint holds the model's tensors, two moments of each parameter and, where there are any, averaged weights.
    """
    model, average = training.model.state_dict(), training.ema or {}
    tensors: list[Tensor] = [*model.values(), *training.parameters, *training.parameters, *average.values()]
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    saving = experiment.config.saving
    num_permanent = experiment.plan.steps // saving.keep_every if saving.keep_every else 0
    return num_bytes * (saving.keep_last + 1 + num_permanent)
