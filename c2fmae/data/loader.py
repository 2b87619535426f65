"""Batches for training, prefetched by worker processes."""

import logging
import signal
import sys
import time
import types
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from c2fmae.core.errors import RunError, UserError
from c2fmae.core.failures import convert_failure, describe_failure
from c2fmae.core.loading_speed import LoadTimes
from c2fmae.core.scene import Scene, SceneBatch
from c2fmae.core.workers import (
    check_shared_memory,
    exit_if_unguarded,
    loader_worker_death_error,
    worker_death_error,
)
from c2fmae.data.sampler import DataPosition, Sampler, sample_generator
from c2fmae.data.scenes import Scenes
from c2fmae.data.transforms import TransformSchedule

log = logging.getLogger(__name__)

B = TypeVar("B")

_MAX_CONSECUTIVE_BROKEN = 16
_SHUTDOWN_GRACE_SECONDS = 60  # a worker runs on after SIGTERM: the parent may need a batch before it saves

BatchRequest = tuple[DataPosition, list[list[int]]]
"""Position of a batch, and [index, repetition] of its samples, which together with the seed determine the batch."""

BatchResult = tuple[DataPosition, Any, list[str], LoadTimes] | UserError | RunError
"""A batch with the errors of the samples that were replaced in it, or the error that aborts the run."""


@dataclass(frozen=True, kw_only=True)
class SceneLoader:
    """A loader of batches that do not depend on the number of workers and ranks.

    A sample is a function of (seed, epoch, index, repetition). A broken sample is replaced by the one with the next
    readable index, or aborts the run.
    """

    scenes: Scenes
    transform: Callable[[Scene, np.random.Generator], Any] | TransformSchedule
    """A function from a scene to a sample, whose only source of randomness is the generator; or one for each batch."""
    sampler: Sampler
    collate: Callable[[list[Any]], Any] = SceneBatch.stack
    """A function from the samples of a batch to the batch, which is pinned by its method `pin_memory`."""
    finish: Callable[[DataPosition, Any], Any] | None = None
    """A function from the position of a batch and the batch to what is returned, called where the batch is loaded."""
    workers: int = 0
    """Number of processes; 0 loads every batch in the calling process."""
    prefetch: int = 2
    """Batches that each worker loads in advance."""
    on_broken: Literal["skip", "error"] = "skip"
    max_broken: float = 0.01
    """Fraction of the samples that may be skipped before the run is aborted."""
    pin_memory: bool = True
    """Whether batches are copied to pinned memory; ignored without a GPU."""

    def __post_init__(self) -> None:
        if self.sampler.num_samples != len(self.scenes):
            raise UserError(
                f"sampler: num_samples is {self.sampler.num_samples}, but there are {len(self.scenes)} scenes"
            )
        if self.on_broken not in ("skip", "error"):
            raise UserError(f"on_broken: expected 'skip' or 'error', got {self.on_broken!r}")
        for name, minimum in (("workers", 0), ("prefetch", 1)):
            if getattr(self, name) < minimum:
                raise UserError(f"{name}: expected at least {minimum}, got {getattr(self, name)}")

    def stream_batches(
        self,
        epochs: int,
        position: DataPosition = DataPosition(),  # noqa: B008 - frozen
    ) -> "BatchStream[Any]":
        """Return an iterator over the batches from a position to the end of the last epoch."""
        return BatchStream(self, epochs, position)


@contextmanager
def explain_worker_death(*errors: type[Exception]) -> Iterator[None]:
    """Raise a `RunError` if a worker dies: torch raises a `RuntimeError` at any point of the main thread.

    `errors` are further types that a dead worker can cause while batches are fetched.
    """
    try:
        yield
    except RuntimeError as error:
        if death := loader_worker_death_error(error):
            raise death from error
        raise
    except errors as error:
        raise worker_death_error(None) from error


class QuietLoader(DataLoader[Any]):
    """A `DataLoader` that prints no error while it ends its workers because one of them could not be started."""

    def _get_iterator(self) -> Any:
        return _WorkerIterator(self) if self.num_workers else super()._get_iterator()


class _WorkerIterator(_MultiProcessingDataLoaderIter):
    def __init__(self, loader: DataLoader[Any]) -> None:
        # torch reads these to shut down, but sets them in the course of the start.
        self._workers_status = [True] * loader.num_workers
        self._shutdown = True
        try:
            super().__init__(loader)
        except BaseException:
            with suppress(Exception):  # the error of the start is the one to report
                _shut_down_workers(self)
            for queue in getattr(self, "_index_queues", []):  # its thread closes what the interpreter would close too
                if queue._thread is not None:
                    queue._thread.join(timeout=5)
            raise


class BatchStream(Iterator[B], Generic[B]):
    """An iterator over batches, with the position in the data and statistics of loading."""

    def __init__(self, loader: SceneLoader, epochs: int, position: DataPosition) -> None:
        self.position = position
        """Position after the last batch that was returned."""
        self.wait_seconds = 0.0
        """Total time that the caller waited for batches."""
        self.load_times = LoadTimes()
        """Time of each stage of loading, over all batches that were returned."""
        self.num_workers = loader.workers
        self.skip_reasons: set[str] = set()
        """Errors of the samples that were replaced."""
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
        exit_if_unguarded()
        with explain_worker_death(*self._worker_death_errors), warnings.catch_warnings():
            # The user may choose more workers than cores.
            warnings.filterwarnings("ignore", "This DataLoader will create")
            self._batches = iter(
                QuietLoader(
                    _BatchDataset(
                        loader.scenes,
                        loader.transform,
                        loader.collate,
                        loader.finish,
                        sampler.seed,
                        loader.on_broken == "skip",
                    ),
                    batch_sampler=requests,
                    num_workers=loader.workers,
                    prefetch_factor=loader.prefetch if is_parallel else None,
                    collate_fn=_identity_collate,
                    worker_init_fn=ignore_signals_in_worker,
                    pin_memory=loader.pin_memory and torch.cuda.is_available(),
                )
            )

        # Runs when the stream is garbage-collected, at exit, or in `close`, whichever comes first.
        self._finalizer = weakref.finalize(self, _shut_down_workers, self._batches)

    def __iter__(self) -> "BatchStream[B]":
        return self

    def __next__(self) -> B:
        if self._batches is None:
            raise StopIteration
        start_time = time.perf_counter()
        try:
            with explain_worker_death(*self._worker_death_errors):
                result = next(self._batches)
        except BaseException:  # StopIteration and Ctrl-C included
            self.close()
            raise
        self.wait_seconds += time.perf_counter() - start_time
        if isinstance(result, UserError | RunError):
            self.close()
            raise result
        batch: B
        batch_position, batch, broken, load_times = result
        self.load_times = self.load_times.plus(load_times)
        self._record_skipped(broken)
        self.position = self._loader.sampler.next_position(batch_position)
        return batch

    def close(self) -> None:
        """Shut the workers down."""
        self._batches = None
        self._finalizer()

    def _record_skipped(self, broken: Sequence[str]) -> None:
        for text in broken:
            if text not in self.skip_reasons:
                log.warning("skipped: %s", text)
                self.skip_reasons.add(text)
        total, limit = self._loader.sampler.num_samples, self._loader.max_broken
        if len(self.skip_reasons) > limit * total:
            self.close()
            raise UserError(
                f"{len(self.skip_reasons)} of {total} samples are broken, more than the allowed {limit:.2%}"
                f" (max_broken). The last one: {next(reversed(broken))}\nList them all with `c2fmae data check`"
            )


@dataclass(frozen=True)
class _BatchDataset(Dataset[object]):
    """The data set of a worker, which returns a batch for each `BatchRequest`."""

    scenes: Scenes
    transform: Callable[[Scene, np.random.Generator], Any] | TransformSchedule
    collate: Callable[[list[Any]], Any]
    finish: Callable[[DataPosition, Any], Any] | None
    seed: int
    skip_broken: bool

    def __getitems__(self, requests: Sequence[BatchRequest]) -> BatchResult:
        (batch_position, draws), broken = requests[0], list[str]()
        transform = self.transform
        if isinstance(transform, TransformSchedule):
            transform = transform.choose(batch_position)
        samples, decode, crop = list[Any](), 0.0, 0.0
        try:
            for index, repetition in draws:
                start = time.perf_counter()
                scene = load_first_readable(self.scenes, index, broken) if self.skip_broken else self.scenes[index]
                decoded = time.perf_counter()
                rng = sample_generator(self.seed, batch_position.epoch, index, repetition)
                samples.append(transform(scene, rng))
                decode += decoded - start
                crop += time.perf_counter() - decoded
            start = time.perf_counter()
            batch = self.collate(samples)
            stacked = time.perf_counter()
            mask_seconds = 0.0
            if self.finish is not None:
                batch = self.finish(batch_position, batch)
                mask_seconds = time.perf_counter() - stacked
            times = LoadTimes(decode, crop, stack=stacked - start, mask=mask_seconds, num_samples=len(samples))
            if get_worker_info() is not None:
                check_shared_memory()
            return batch_position, batch, broken, times
        except (UserError, RuntimeError) as error:  # torch would put the traceback of a worker into the message
            failure = convert_failure(error)
            if isinstance(failure, UserError | RunError):
                return failure
            raise


def _shut_down_workers(batches: object) -> None:
    workers = list(getattr(batches, "_workers", []))
    shut_down = getattr(batches, "_shutdown_workers", None)
    try:
        if shut_down is not None:
            shut_down()
    finally:  # `explain_worker_death` describes an error that may be raised here too
        for worker in workers:
            if worker.is_alive():  # busy, and slow to react to a request
                worker.kill()


def load_first_readable(scenes: Scenes, index: int, broken: list[str]) -> Scene:
    """Return the scene at an index, or the next readable one; errors of those before are appended to `broken`."""
    for candidate in range(index, index + _MAX_CONSECUTIVE_BROKEN):
        try:
            return scenes[candidate % len(scenes)]
        except UserError as error:
            if failure := describe_failure(error):  # such as too many open files: the sample itself is not broken
                raise RunError(failure) from error
            broken.append(str(error))
    raise UserError(f"{_MAX_CONSECUTIVE_BROKEN} consecutive samples are broken. The last one: {broken[-1]}")


def _identity_collate(batch: object) -> object:
    return batch


def ignore_signals_in_worker(_: int) -> None:
    """Ignore signals to the process group: the parent may need another batch before it stops."""
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_SHUTDOWN_GRACE_SECONDS))
    sys.excepthook = _silence_connection_errors


def _silence_connection_errors(
    error_type: type[BaseException], error: BaseException, trace: types.TracebackType | None
) -> None:
    """Suppress the traceback of the thread that sends tensors after the parent has exited."""
    if not issubclass(error_type, ConnectionError):
        sys.__excepthook__(error_type, error, trace)
