"""How an experiment goes, whatever it trains: in its folder, by all its processes, to the end or until told to stop."""

import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, Literal, Protocol

from torch import nn

from c2fmae.core.checkpoint import checkpoints_in
from c2fmae.core.config import Config
from c2fmae.core.distributed import World, is_lost
from c2fmae.core.errors import RunError, UserError
from c2fmae.core.loop import Loop, Report, Task, Training
from c2fmae.core.resume import begin
from c2fmae.core.run_dir import RunFolder, open_run
from c2fmae.core.saving import Saver, SavingConfig
from c2fmae.core.signals import Stop, catching_signals
from c2fmae.core.trackers import require
from c2fmae.core.training import Plan, TrainingConfig
from c2fmae.core.watching import Watch, WatchingConfig

log = logging.getLogger(__name__)


class ExperimentConfig(Config):
    """What the config of every experiment has."""

    training: TrainingConfig
    saving: SavingConfig = SavingConfig()
    watching: WatchingConfig = WatchingConfig()


class Batches(Protocol):
    """Batches one after the other."""

    skipped: set[str]
    """What was wrong with samples that were replaced."""
    seconds_waited: float
    """Time that whoever asks for batches had to wait for them."""

    def __iter__(self) -> Iterator[Any]: ...

    def __next__(self) -> Any: ...


class Experiment(ABC):
    """What is trained, on what, and how it is looked at meanwhile."""

    plan: Plan
    world: World

    @property
    @abstractmethod
    def settings(self) -> ExperimentConfig:
        """The config, fitted to the data."""

    @property
    @abstractmethod
    def model(self) -> nn.Module:
        """What learns."""

    @property
    @abstractmethod
    def task(self) -> Task[Any, Any]:
        """How it learns."""

    @abstractmethod
    def batches(self, step: int) -> AbstractContextManager[Batches]:
        """Give the batches from a step on: where they are in the data is a function of the step."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """Return what a checkpoint says beside its tensors: `config`, `classes`, `samples` and more."""

    @abstractmethod
    def refuse_broken(self, count: int) -> None:
        """End the run where so many samples, over all processes, are more than may be broken."""

    @abstractmethod
    def look(self, training: Training, run: RunFolder, watch: Watch, *, is_again: bool = False) -> None:
        """Measure and draw what is due after a step; `is_again` where that may have been done before."""

    @abstractmethod
    def write_page(self, run: RunFolder) -> None:
        """Write the page about the run."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended, and the exit code that says so."""

    status: Literal["finished", "saved-on-signal"]
    step: int
    code: int = 0


@contextmanager
def folder_of(out: Path, world: World) -> Iterator[RunFolder]:
    """Open a run's folder: the first process has it to itself, for all."""
    with open_run(out) if world.is_first else nullcontext(RunFolder(out)) as run:
        world.wait()
        yield run


def is_new(run: RunFolder, world: World) -> bool:
    """Return whether nothing has been learned in a folder yet; the same in all processes."""
    return not world.share(bool(checkpoints_in(run.checkpoints)))


def conduct(it: Experiment, run: RunFolder, *, resume: bool = False, accept_changes: bool = False) -> Outcome:
    """Take an experiment to its end in a folder, or go on with the one that is there."""
    settings, world = it.settings, it.world
    training = Training.start(it.model, settings.training)
    for name in settings.watching.trackers if world.is_first else ():
        require(name)
    is_over = begin(
        training,
        run,
        world,
        settings,
        it.facts(),
        steps=it.plan.steps,
        room=room_for(it, training),
        compiled=settings.training.compile,
        resume=resume,
        accept_changes=accept_changes,
    )
    if is_over:
        return Outcome("finished", training.step)
    if world.is_first:
        log.info("%s", it.plan)
    try:
        with catching_signals() as stop:
            outcome = train(it, training, run, stop)
    except BaseException as error:
        if world.is_first:
            with suppress(UserError):  # on a full disk: what came first is what is to be told
                why = "another process is gone" if is_lost(error) else str(error) or type(error).__name__
                run.write_state("failed", step=training.step, why=why)
        raise
    if world.is_first:
        run.write_state(outcome.status, step=outcome.step)
        try:
            it.write_page(run)
        except Exception as error:  # the page is a view of the run, not the run
            log.warning("%s: could not be written: %s", run.report, error)
    return outcome


def train(it: Experiment, training: Training, run: RunFolder, stop: Stop) -> Outcome:
    """Take steps to the end of the plan, or until somebody says stop."""
    settings, plan, world = it.settings, it.plan, it.world
    loop = Loop(it.task, settings.training, plan, world)
    with ExitStack() as stack:
        batches = stack.enter_context(it.batches(training.step))
        saver = stack.enter_context(Saver(run.checkpoints, settings.saving, world, it.facts()))
        watch = stack.enter_context(
            Watch(
                run,
                settings.watching,
                plan,
                done=training.step,
                settings=settings.model_dump(mode="json"),
                is_quiet=not world.is_first,
            )
        )

        def ask() -> dict[str, int]:
            return {"stop": bool(stop), "save": saver.is_late, "broken": len(batches.skipped)}

        if training.step:
            it.look(training, run, watch, is_again=True)  # a run may end between a step and the look that is due
        for report in loop.steps(training, watch.timed(batches), ask):
            watch.after(report)
            it.refuse_broken(report.answers["broken"])
            if report.trouble is not None:
                note_trouble(training, run, report, world, most=settings.training.max_bad_steps)
            is_asked = report.answers["stop"] or report.answers["save"]
            if is_asked or settings.saving.is_due(training.step, plan.steps):
                watch.sync()
                saver.save(training)
            if report.answers["stop"]:
                return Outcome("saved-on-signal", training.step, stop.code)
            it.look(training, run, watch)
    return Outcome("finished", training.step)


def note_trouble(training: Training, run: RunFolder, report: Report, world: World, *, most: int) -> None:
    """Write down what was in a step that was skipped; too many in a row end the run."""
    name = f"trouble/step-{report.step:08d}-process-{world.rank}.json"
    parts = [
        {key: value if not isinstance(value, float) or isfinite(value) else None for key, value in part.items()}
        for part in report.trouble or []
    ]
    norm = report.values["grad_norm"]
    trouble = {"step": report.step, "grad_norm": norm if isfinite(norm) else None, "parts": parts}
    run.write_text(name, json.dumps(trouble, indent=2) + "\n")
    if training.bad_steps >= most:
        last = checkpoints_in(run.checkpoints)
        kept = f"The last checkpoint, {last[-1].name}, is good" if last else "There is no checkpoint yet"
        raise RunError(
            f"{training.bad_steps} steps in a row had a loss or gradient that is not finite, the last is step "
            f"{report.step}. {kept}. {run.path / name} has the samples and losses; try a lower learning rate, "
            "training.clip=1, or training.precision=fp32"
        )


def room_for(it: Experiment, training: Training) -> int:
    """Return the bytes that a run's checkpoints will take: weights, two moments and the average, one more than kept."""
    weights = sum(parameter.numel() * parameter.element_size() for parameter in training.model.parameters())
    saving, copies = it.settings.saving, 3 + (training.average is not None)
    kept = it.plan.steps // saving.keep_every if saving.keep_every else 0
    return weights * copies * (saving.keep_last + 1 + kept)
