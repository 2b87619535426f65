"""The pipeline of a labelling: threads decode the next images and encode the last maps while the labellers work.

The maps of an image depend on its shard alone: the batches of a shard are a function of its keys and sizes.
"""

import logging
import re
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, ParamSpec, TypeVar

import torch
from jaxtyping import UInt8
from torch import Tensor

from c2fmae.core.errors import RunError, UserError
from c2fmae.core.failures import convert_failure
from c2fmae.core.text import format_count
from c2fmae.data.decode import read_image_size
from c2fmae.data.encode import encode_annotations, encode_image, image_member, image_suffix
from c2fmae.data.geometry import scene_size
from c2fmae.data.scenes import Scenes
from c2fmae.data.stored import sort_coarse_to_fine
from c2fmae.labelling.batches import plan_batches
from c2fmae.labelling.check_result import check_result, name_labeller
from c2fmae.labelling.executor import completed, open_executor
from c2fmae.labelling.manifest import make_failed_row, make_record, make_row, to_json_line
from c2fmae.labelling.protocol import LabelInput, Labeller, LabelResult

log = logging.getLogger(__name__)

_CPU_MEMORY = re.compile(r"can't allocate memory|not enough memory|bad_alloc")

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class LabelledSample:
    """What is written for an image: the row of the manifest, and the members of the shard but the image."""

    row: Mapping[str, Any]
    members: tuple[tuple[str, bytes], ...] = ()
    image: tuple[str, bytes] | None = None
    """The image, if the source does not store it in a form that a shard can hold."""

    @property
    def is_failed(self) -> bool:
        """Whether the image cannot be read; the shard does not hold it."""
        return not self.members


@dataclass
class StageTimes:
    """Seconds spent in each stage of the pipeline, summed over threads."""

    read: float = 0.0
    label: list[float] = field(default_factory=list)
    """By labeller."""
    encode: float = 0.0


@dataclass(frozen=True)
class BatchReport:
    """A batch that was labelled."""

    num_images: int
    failures: tuple[str, ...]
    """Reasons for images that cannot be decoded."""
    seconds: float
    """Since the report before it."""
    wait_seconds: float
    """Part of these in which the labellers waited for decoded images."""


@dataclass(frozen=True)
class _Source:
    """The size of an image, and whether a shard can hold its file."""

    size: tuple[int, int]
    is_stored: bool


@dataclass(frozen=True)
class _Failure:
    reason: str


@dataclass(frozen=True)
class _Decoded:
    input: LabelInput
    image: UInt8[Tensor, "channels height width"] | None
    """The image to encode, if its file cannot be copied."""


@dataclass(frozen=True)
class _Batch:
    shard: int
    sources: Mapping[int, _Source]
    failures: Mapping[int, _Failure]
    batch_size: int
    is_last: bool

    @property
    def num_bytes(self) -> int:
        return sum(3 * source.size[0] * source.size[1] for source in self.sources.values())


class _OutOfMemory(Exception):  # noqa: N818 - not an error: the shard begins again
    pass


class LabelPipeline:
    """Labels the images of shards.

    Args:
        scenes: the images. Reading one that is broken raises a `UserError`, and it fails.
        member_keys: the key of each image in its shard.
        labellers: each map is made by one of them.
        stride: pixels per cell of a map along each side.
        batch_size: largest number of images in a batch.
        decode_bytes: largest size of the decoded images that wait for the labellers, except for one batch.
        plan_digest: the digest to write into each record.
        num_workers: number of threads that decode and encode; with 0, the calling thread does it.
    """

    def __init__(
        self,
        scenes: Scenes,
        member_keys: Sequence[str],
        labellers: Sequence[Labeller],
        *,
        stride: int,
        batch_size: int,
        decode_bytes: int,
        plan_digest: str,
        num_workers: int,
    ) -> None:
        self.scenes, self.member_keys, self.labellers = scenes, member_keys, tuple(labellers)
        self.stride, self.batch_size, self.decode_bytes = stride, batch_size, decode_bytes
        self.plan_digest, self.num_workers = plan_digest, num_workers
        self._max_waiting = num_workers + 2 if num_workers else 0  # batches
        self.times = StageTimes(label=[0.0] * len(self.labellers))

    def run(
        self,
        shards: Sequence[int],
        indices_of: Callable[[int], Sequence[int]],
        write: Callable[[int, Mapping[int, LabelledSample]], None],
    ) -> Generator[BatchReport, None, None]:
        """Label the images of shards, and pass the samples of each shard, by index, to `write` in a thread."""
        position, batch_size, reported = 0, self.batch_size, set[int]()
        writing: Future[None] | None = None
        with open_executor(self.num_workers) as executor:
            while position < len(shards):
                samples: dict[int, Future[LabelledSample]] = {}
                batches = self._plan_batches(shards[position:], indices_of, batch_size, executor)
                reported_at = perf_counter()
                for batch, futures in self._decode_ahead(batches, executor):
                    decoded = {index: future.result() for index, future in futures.items()}
                    wait_seconds = perf_counter() - reported_at
                    failures = {**batch.failures, **_select(decoded, _Failure)}
                    try:
                        labelled = self._label_batch(_select(decoded, _Decoded))
                    except _OutOfMemory:
                        batch_size = _halve_batch(batch_size, batch.shard)
                        break  # the shard begins again
                    for index, failure in failures.items():
                        row = make_failed_row(self.member_keys[index], failure.reason)
                        samples[index] = completed(LabelledSample(_add_batch(row, batch)))
                    for index, (image, results) in labelled.items():
                        samples[index] = executor.submit(self._encode, index, image, results, batch)
                    if batch.is_last:
                        if writing:
                            writing.result()  # so that the maps of two shards at most are in memory
                        writing = executor.submit(_write_samples, write, batch.shard, samples)
                        position, batch_size, samples = position + 1, self.batch_size, {}
                    new = [index for index in (*labelled, *failures) if index not in reported]
                    reported = set() if batch.is_last else reported.union(new)
                    reasons = tuple(failures[index].reason for index in new if index in failures)
                    now = perf_counter()
                    yield BatchReport(len(new), reasons, now - reported_at, wait_seconds)
                    reported_at = now
            if writing:
                writing.result()

    def _plan_batches(
        self, shards: Sequence[int], indices_of: Callable[[int], Sequence[int]], batch_size: int, executor: Executor
    ) -> Iterator[_Batch]:
        """Yield the batches of shards. The sizes in the next shard are read while a shard is labelled.

        `batch_size` is that of the first shard.
        """

        def submit(shard: int) -> dict[int, Future[_Source | _Failure]]:
            return {index: executor.submit(self._read_size, index) for index in indices_of(shard)}

        futures = submit(shards[0])
        for position, shard in enumerate(shards):
            sources = {index: future.result() for index, future in futures.items()}
            if position + 1 < len(shards):
                futures = submit(shards[position + 1])
            readable, failures = _select(sources, _Source), _select(sources, _Failure)
            size = batch_size if position == 0 else self.batch_size
            sizes = {index: source.size for index, source in readable.items()}
            batches = plan_batches(sizes, self._batch_key, size) or [[]]
            for number, batch in enumerate(batches):
                yield _Batch(
                    shard,
                    {index: readable[index] for index in batch},
                    {} if number else failures,
                    batch_size=size,
                    is_last=number == len(batches) - 1,
                )

    def _decode_ahead(
        self, batches: Iterator[_Batch], executor: Executor
    ) -> Iterator[tuple[_Batch, dict[int, "Future[_Decoded | _Failure]"]]]:
        """Yield each batch with its images, which threads decode up to a limit of memory ahead."""
        waiting: deque[tuple[_Batch, dict[int, Future[_Decoded | _Failure]]]] = deque()
        num_bytes = 0
        for batch in batches:
            images = {index: executor.submit(self._decode, index, source) for index, source in batch.sources.items()}
            waiting.append((batch, images))
            num_bytes += batch.num_bytes
            while waiting and (num_bytes > self.decode_bytes or len(waiting) > self._max_waiting):
                num_bytes -= waiting[0][0].num_bytes
                yield waiting.popleft()
        yield from waiting

    def _batch_key(self, height: int, width: int) -> tuple[object, ...]:
        return tuple(labeller.batch_key(height, width) for labeller in self.labellers)

    def _read_size(self, index: int) -> _Source | _Failure:
        """Return the size of an image by the header of its file, or by decoding it."""
        started_at = perf_counter()
        try:
            data = self.scenes.read_image_bytes(index)
            size = read_image_size(data) if data is not None else None
            is_stored = data is not None and image_suffix(data) is not None
            return _Source(size or scene_size(self.scenes[index]), is_stored)
        except UserError as error:
            return _fail(error)
        finally:
            self.times.read += perf_counter() - started_at

    def _decode(self, index: int, source: _Source) -> _Decoded | _Failure:
        started_at = perf_counter()
        try:
            scene = self.scenes[index]
        except UserError as error:
            return _fail(error)
        finally:
            self.times.read += perf_counter() - started_at
        stored = scene.maps["rgb"]
        image = stored.expand(3, -1, -1) if len(stored) == 1 else stored
        return _Decoded(LabelInput(scene.key, image, scene.label), None if source.is_stored else stored)

    def _label_batch(self, decoded: Mapping[int, _Decoded]) -> dict[int, tuple[_Decoded, list[LabelResult]]]:
        """Return the results of all labellers for each image."""
        # A decoder may disagree with a header about the orientation of an image.
        sizes = {index: _image_size(each.input) for index, each in decoded.items()}
        labelled: dict[int, tuple[_Decoded, list[LabelResult]]] = {}
        for indices in plan_batches(sizes, self._batch_key, max(len(sizes), 1)):
            inputs = [decoded[index].input for index in indices]
            results = [self._call(number, inputs) for number in range(len(self.labellers))]
            labelled |= {index: (decoded[index], [each[row] for each in results]) for row, index in enumerate(indices)}
        return labelled

    def _call(self, number: int, inputs: Sequence[LabelInput]) -> list[LabelResult]:
        """Call a labeller. The error for an exception names the image that raises it."""
        labeller, started_at = self.labellers[number], perf_counter()
        try:
            results = labeller.label(inputs, self.stride)
        except Exception as error:
            if _is_out_of_memory(error):
                # Its traceback would keep the tensors of the labeller alive.
                traceback.clear_frames(error.__traceback__)
                raise _OutOfMemory from None
            if len(inputs) > 1:
                for each in inputs:
                    self._call(number, [each])
            names = ", ".join(repr(each.key) for each in inputs[:3])
            location = f"{'image' if len(inputs) == 1 else 'images'} {names}"
            if isinstance(error, UserError | RunError):
                raise type(error)(f"{location}: {error}") from error
            raise RuntimeError(
                f"{location}: {name_labeller(labeller)} failed: {type(error).__name__}: {error}"
            ) from error
        self.times.label[number] += perf_counter() - started_at
        if len(results) != len(inputs):
            raise RunError(
                f"{name_labeller(labeller)}: returned {format_count(len(results), 'result')} for"
                f" {format_count(len(inputs), 'image')}. Fix the labeller"
            )
        return results

    def _encode(self, index: int, decoded: _Decoded, results: Sequence[LabelResult], batch: _Batch) -> LabelledSample:
        started_at, key = perf_counter(), self.member_keys[index]
        for labeller, result in zip(self.labellers, results, strict=True):
            check_result(result, labeller, decoded.input, self.stride)
        by_name = {name: ids.numpy() for result in results for name, ids in result.maps.items()}
        maps = {name: by_name[name] for name in sort_coarse_to_fine(by_name)}
        objects = [each for result in results for each in result.objects]
        metadata = {name: value for result in results for name, value in result.metadata.items()}
        record = make_record(_image_size(decoded.input), maps, objects, metadata, self.plan_digest)
        try:
            members = tuple(encode_annotations(key, maps, decoded.input.label))
            image = None if decoded.image is None else image_member(key, encode_image(decoded.image))
        except UserError as error:
            raise UserError(f"image {decoded.input.key!r}: {error}") from error
        row = _add_batch(make_row(key, record, maps), batch)
        self.times.encode += perf_counter() - started_at
        return LabelledSample(row, (*members, (f"{key}.json", to_json_line(record, sort_keys=True))), image)


def _image_size(labelled: LabelInput) -> tuple[int, int]:
    return labelled.image.shape[1], labelled.image.shape[2]


def _add_batch(row: Mapping[str, Any], batch: _Batch) -> dict[str, Any]:
    return {**row, "batch_size": batch.batch_size}


def _fail(error: UserError) -> _Failure:
    converted: Exception = convert_failure(error)
    if isinstance(converted, RunError):  # such as too many open files, for which the image is not to blame
        raise converted
    return _Failure(str(error))


def _select(values: Mapping[int, object], kind: type[R]) -> dict[int, R]:
    return {index: value for index, value in values.items() if isinstance(value, kind)}


def _write_samples(
    write: Callable[[int, Mapping[int, LabelledSample]], None],
    shard: int,
    samples: Mapping[int, Future[LabelledSample]],
) -> None:
    write(shard, {index: future.result() for index, future in samples.items()})


def _halve_batch(batch_size: int, shard: int) -> int:
    """Return the batch size for another attempt at a shard for which memory ran out."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if batch_size == 1:
        raise RunError(
            "memory ran out with a batch of one image. Use a smaller model, precision=bf16, smaller images, or"
            " --device cpu"
        )
    half = batch_size // 2
    log.warning(
        "shard %d: memory ran out with batches of %d; it begins again with %d. To save the attempts, set batch_size=%d",
        *(shard, batch_size, half, half),
    )
    return half


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or bool(_CPU_MEMORY.search(str(error)))
