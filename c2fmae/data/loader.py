"""Batches, made ahead of time by worker processes."""

import logging
import signal
import sys
import time
import types
import warnings
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from c2fmae.core.errors import UserError
from c2fmae.core.scene import Scene, SceneBatch
from c2fmae.core.seeding import derive_seed
from c2fmae.data.sampler import DataPosition, Sampler
from c2fmae.data.scenes import Scenes
from c2fmae.data.transforms import Transform

log = logging.getLogger(__name__)

_MAX_CONSECUTIVE_BROKEN = 16  # samples in a row that may be broken
_SHUTDOWN_GRACE_SECONDS = (
    60  # seconds that a worker goes on after it was told to end: the parent may need a batch to save
)

BatchRequest = tuple[DataPosition, list[list[int]]]
"""Where a batch stands, and [index, repetition] of its samples: with the seed, all that they depend on."""

BatchResult = tuple[DataPosition, SceneBatch, list[str]] | UserError
"""A batch, and what was wrong with samples that it should have had."""


@dataclass(frozen=True, kw_only=True)
class SceneLoader:
    """Turns scenes into batches of samples, the same for any number of workers and ranks.

    A sample is a function of (seed, epoch, index, repetition). A broken one is replaced by the next index that is
    whole, which is a function of these too, or ends the run.
    """

    scenes: Scenes
    transform: Transform
    sampler: Sampler
    workers: int = 0
    """Processes; 0 makes every batch when it is asked for."""
    prefetch: int = 2
    """Batches that each worker is ahead."""
    on_broken: Literal["skip", "error"] = "skip"
    max_broken: float = 0.01
    """Share of the samples that may be skipped; above it the run stops."""
    pin_memory: bool = True
    """Where there is a GPU, put batches where it can fetch them by itself."""
    start_method: Literal["fork", "spawn", "forkserver"] | None = None
    """How workers come into being; by default as Python does it here."""

    def __post_init__(self) -> None:
        if self.sampler.num_samples != len(self.scenes):
            raise UserError(f"sampler: made for {self.sampler.num_samples} samples, but there are {len(self.scenes)}")
        if self.on_broken not in ("skip", "error"):
            raise UserError(f"on_broken: expected 'skip' or 'error', got {self.on_broken!r}")
        for name, least in (("workers", 0), ("prefetch", 1)):
            if getattr(self, name) < least:
                raise UserError(f"{name}: expected at least {least}, got {getattr(self, name)}")

    def stream_batches(self, epochs: int, position: DataPosition = DataPosition()) -> "BatchStream":  # noqa: B008 - frozen
        """Return the batches from a position to the end of the last epoch."""
        return BatchStream(self, epochs, position)


@contextmanager
def explain_worker_death(*errors: type[Exception]) -> Iterator[None]:
    """Say in a sentence that a worker died: torch raises that wherever the main thread happens to be.

    `errors` are what else can only come of it, where batches are fetched from workers.
    """
    kinds: tuple[type[Exception], ...] = (RuntimeError, *errors)
    try:
        yield
    except kinds as error:
        if isinstance(error, RuntimeError) and not str(error).startswith("DataLoader worker"):
            raise
        advice = "Run again with fewer workers"
        raise UserError(f"a worker process died, most likely because memory ran out. {advice}") from error


class BatchStream(Iterator[SceneBatch]):
    """Batches one after the other, with what is to be known about their making."""

    def __init__(self, loader: SceneLoader, epochs: int, position: DataPosition) -> None:
        self.position = position
        """After the batch that was handed out last."""
        self.wait_seconds = 0.0
        """Time that whoever asks for batches had to wait for them."""
        self.skip_reasons: set[str] = set()
        """What was wrong with the samples that were replaced."""
        self._loader = loader
        sampler = loader.sampler
        requests = (
            [(batch_position, draws.tolist())] for batch_position, draws in sampler.iterate_batches(position, epochs)
        )
        self._batches: Iterator[BatchResult] | None
        is_parallel = loader.workers > 0
        self._worker_death_errors: tuple[type[Exception], ...] = (
            (ConnectionError, EOFError, FileNotFoundError) if is_parallel else ()
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than cores: as was asked
            self._batches = iter(
                DataLoader(
                    _BatchDataset(loader.scenes, loader.transform, sampler.seed, loader.on_broken == "skip"),
                    batch_sampler=requests,
                    num_workers=loader.workers,
                    prefetch_factor=loader.prefetch if is_parallel else None,
                    multiprocessing_context=loader.start_method if is_parallel else None,
                    collate_fn=_identity_collate,
                    worker_init_fn=_ignore_signals_in_worker,
                    pin_memory=loader.pin_memory and torch.cuda.is_available(),
                )
            )

        # Called when nothing refers to this any more, at the end of the program, or by `close`, whichever is first.
        self._finalizer = weakref.finalize(self, _shut_down_workers, self._batches)

    def __iter__(self) -> "BatchStream":
        return self

    def __next__(self) -> SceneBatch:
        if self._batches is None:
            raise StopIteration
        started = time.perf_counter()
        try:
            with explain_worker_death(*self._worker_death_errors):
                result = next(self._batches)
        except BaseException:  # Ctrl-C and the end alike
            self.close()
            raise
        self.wait_seconds += time.perf_counter() - started
        if isinstance(result, UserError):
            self.close()
            raise result
        batch_position, batch, broken = result
        self._record_skipped(broken)
        self.position = self._loader.sampler.next_position(batch_position)
        return batch

    def close(self) -> None:
        """End the workers."""
        self._batches = None
        self._finalizer()

    def _record_skipped(self, broken: Sequence[str]) -> None:
        for text in broken:
            if text not in self.skip_reasons:
                log.warning("skipped: %s", text)
                self.skip_reasons.add(text)
        total, share = self._loader.sampler.num_samples, self._loader.max_broken
        if len(self.skip_reasons) > share * total:
            self.close()
            raise UserError(
                f"{len(self.skip_reasons)} of {total} samples are broken, more than the {share:.2%} that may be "
                "skipped;"
                f" the last: {next(reversed(broken))}\nList them all with `c2fmae data check`"
            )


@dataclass(frozen=True)
class _BatchDataset(Dataset[object]):
    """What a worker holds: it makes a whole batch for the coordinates of its samples."""

    scenes: Scenes
    transform: Transform
    seed: int
    skip_broken: bool

    def __getitems__(self, requests: Sequence[BatchRequest]) -> BatchResult:
        (batch_position, draws), broken = requests[0], list[str]()
        try:
            scenes = [self._make_sample(batch_position.epoch, index, copy, broken) for index, copy in draws]
            return batch_position, SceneBatch.stack(scenes), broken
        except UserError as error:  # raised in a worker, it would come out with a traceback for a message
            return error

    def _make_sample(self, epoch: int, index: int, repetition: int, broken: list[str]) -> Scene:
        scene = load_first_readable(self.scenes, index, broken) if self.skip_broken else self.scenes[index]
        return self.transform(scene, np.random.default_rng(derive_seed(self.seed, "view", epoch, index, repetition)))


def _shut_down_workers(batches: object) -> None:
    workers = list(getattr(batches, "_workers", []))
    end = getattr(batches, "_shutdown_workers", None)
    try:
        if end is not None:
            end()
    finally:  # torch tells of a dead worker wherever the main thread is, here too
        for worker in workers:
            if worker.is_alive():  # it is stuck, and takes its time to end when it is asked to
                worker.kill()


def load_first_readable(scenes: Scenes, index: int, broken: list[str]) -> Scene:
    """Return the scene of that index, or the next that is whole; what is wrong with others joins `broken`."""
    for place in range(index, index + _MAX_CONSECUTIVE_BROKEN):
        try:
            return scenes[place % len(scenes)]
        except UserError as error:
            broken.append(str(error))
    raise UserError(f"{_MAX_CONSECUTIVE_BROKEN} samples in a row are broken, the last: {broken[-1]}")


def _identity_collate(made: object) -> object:
    return made


def _ignore_signals_in_worker(_: int) -> None:
    """Schedulers and terminals send to whole groups of processes; a run that is to save needs its next batch."""
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_SHUTDOWN_GRACE_SECONDS))
    sys.excepthook = _silence_connection_errors


def _silence_connection_errors(
    kind: type[BaseException], error: BaseException, trace: types.TracebackType | None
) -> None:
    """The thread that hands tensors over finds its line cut when the parent ends; that is no news."""
    if not issubclass(kind, ConnectionError):
        sys.__excepthook__(kind, error, trace)
