"""Estimate of the time, memory and disk space of a labelling, from a few of its images. Nothing is written."""

from collections.abc import Mapping, Sequence
from math import sqrt
from pathlib import Path
from statistics import fmean, stdev
from time import perf_counter

from c2fmae.core.errors import UserError
from c2fmae.core.files import check_disk_space
from c2fmae.core.text import format_count
from c2fmae.core.watching import peak_memory
from c2fmae.data.encode import encode_tar_member, image_member, keys_to_member_keys
from c2fmae.data.scenes import Scenes
from c2fmae.data.spacing import evenly_spaced_indices
from c2fmae.labelling.config import LabelConfig
from c2fmae.labelling.describe import combine_knowledge, count_prompts, list_licences
from c2fmae.labelling.manifest import to_json_line
from c2fmae.labelling.pipeline import LabelledSample, LabelPipeline
from c2fmae.labelling.protocol import Labeller

NUM_IMAGES = 32
"""Number of images that are labelled, evenly spaced over the data."""

_DEVICES = (1, 8, 64)
_T_QUANTILES = (12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""97.5 % quantiles of Student's distribution with 1, 2, … degrees of freedom; the last is used for all above."""


def measure_labelling(
    scenes: Scenes, labellers: Sequence[Labeller], out: Path, config: LabelConfig, *, workers: int
) -> str:
    """Label a few images, and return ten lines about what the labelling of all images needs.

    The first image is labelled twice: what happens once, such as compilation, is not measured.
    """
    indices = evenly_spaced_indices(len(scenes), NUM_IMAGES, centred=True)
    samples: dict[int, LabelledSample] = {}
    member_keys = keys_to_member_keys(scenes.keys)

    def collect_samples(_: int, labelled: Mapping[int, LabelledSample]) -> None:
        samples.update(labelled)

    def make_pipeline() -> LabelPipeline:
        return LabelPipeline(
            scenes,
            member_keys,
            labellers,
            stride=config.label_stride,
            batch_size=config.batch_size,
            decode_bytes=config.decode_memory * 10**6,
            plan_digest="0" * 8,
            num_workers=workers,
        )

    for _ in make_pipeline().run([0], lambda _: indices[: config.batch_size], collect_samples):
        pass
    samples.clear()
    pipeline = make_pipeline()
    started_at = perf_counter()
    reports = list(pipeline.run([0], lambda _: indices, collect_samples))
    seconds = perf_counter() - started_at
    labelled = {index: sample for index, sample in samples.items() if not sample.is_failed}
    if not labelled:
        reasons = "; ".join(str(sample.row["why"]) for sample in list(samples.values())[:3])
        raise UserError(f"none of {format_count(len(indices), 'image')} can be read: {reasons}. Check the images")

    num_bytes = fmean(
        [_count_bytes(scenes, index, member_keys[index], each, config) for index, each in labelled.items()]
    )
    total_bytes = num_bytes * len(scenes)
    rate = len(indices) / seconds
    duration = len(scenes) / rate
    spread = _relative_error([report.seconds / report.num_images for report in reports if report.num_images])
    interval = "" if spread is None else f" ±{spread:.0%}"
    times = pipeline.times
    stages = [
        f"read and decode {_to_ms(times.read, len(indices))}",
        *(
            f"{'+'.join(sorted(labeller.granularities))} maps {_to_ms(label, len(indices))}"
            for labeller, label in zip(labellers, times.label, strict=True)
        ),
        f"encode {_to_ms(times.encode, len(indices))}",
    ]
    durations = [f"{_format_seconds(duration / count)} on {count}" for count in _DEVICES]
    rows = [sample.row for sample in labelled.values()]
    numbers = [row["instances"] for row in rows if row["instances"] is not None]
    num_failed = len(indices) - len(labelled)
    num_empty = sum(row["status"] == "empty" for row in rows)
    prompts = count_prompts(labellers)
    knows = {True: "yes", False: "no", None: "unknown"}[combine_knowledge(labellers)]
    text = "\n".join(
        [
            f"{format_count(len(indices), 'image')} of {len(scenes):,}, ms an image: {', '.join(stages)}",
            f"speed: {rate:.3g} images/s{interval}, with {format_count(workers, 'thread')} beside the labellers",
            f"time: {', '.join(durations)} of this device",
            f"peak memory: {peak_memory() / 2**30:.2g} GiB",
            f"disk: {num_bytes / 1e3:.3g} KB an image, {_format_bytes(total_bytes)} for all",
            f"prompts an image: {prompts or 'none'}",
            f"without objects: {num_empty / len(rows):.0%}; failed: {num_failed}",
            f"objects an image: {f'{fmean(numbers):.3g}' if numbers else 'no instance maps'}",
            f"maps know labels: {knows}",
            f"licences: {'; '.join(list_licences(labellers)) or 'no weights'}",
        ]
    )
    check_disk_space(
        out, num_bytes=round(total_bytes), purpose="shards", alternative="use --images leave-out, without the images"
    )
    return text


def _count_bytes(scenes: Scenes, index: int, key: str, sample: LabelledSample, config: LabelConfig) -> int:
    members = list(sample.members)
    if config.images == "keep":
        members.append(sample.image or image_member(key, scenes.read_image_bytes(index) or b""))
    return sum(len(encode_tar_member(name, data)) for name, data in members) + len(to_json_line(sample.row))


def _relative_error(values: Sequence[float]) -> float | None:
    """Return half of a 95 % interval of the mean, relative to it; None for a single value.

    >>> _relative_error([1.0, 3.0]), _relative_error([2.0])
    (6.355, None)
    """
    if len(values) == 1:
        return None
    quantile = _T_QUANTILES[min(len(values) - 1, len(_T_QUANTILES)) - 1]
    return quantile * stdev(values) / sqrt(len(values)) / fmean(values)


def _to_ms(seconds: float, count: int) -> str:
    return f"{1000 * seconds / count:.3g}"


def _format_seconds(seconds: float) -> str:
    """Return a duration in a suitable unit.

    >>> [_format_seconds(seconds) for seconds in (50, 500, 50_000)]
    ['50 seconds', '8.3 minutes', '14 hours']
    """
    for unit, length in (("hours", 3600), ("minutes", 60)):
        if seconds >= length:
            return f"{seconds / length:.2g} {unit}"
    return f"{seconds:.2g} seconds"


def _format_bytes(count: float) -> str:
    return f"{count / 1e9:.3g} GB" if count >= 1e9 else f"{count / 1e6:.3g} MB"
