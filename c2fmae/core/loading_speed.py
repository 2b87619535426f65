"""The time that loading takes, by stage, and whether it limits training."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

from c2fmae.core.metric_rows import is_number
from c2fmae.core.text import format_count

STAGES: Mapping[str, str] = {
    "decode": "reading and decoding",
    "crop": "cropping",
    "stack": "stacking",
    "mask": "masking",
}
"""Stages of loading, with their display names. Generated scenes are drawn instead of decoded, and only pre-training
masks."""

_LIMITING_WAIT = 0.1
"""Loading limits training that waits for data for a larger fraction of the time."""


class LoadTimes(NamedTuple):
    """Seconds that a loader's processes took for some samples, by stage."""

    decode: float = 0.0
    """Reading and decoding, or generating."""
    crop: float = 0.0
    """The transform: cropping, resizing, flipping and any augmentation."""
    stack: float = 0.0
    """Stacking samples to a batch."""
    mask: float = 0.0
    """Masks and counts of a batch."""
    num_samples: int = 0

    def plus(self, other: "LoadTimes") -> "LoadTimes":
        """Return the times of the samples of both."""
        return LoadTimes(
            self.decode + other.decode,
            self.crop + other.crop,
            self.stack + other.stack,
            self.mask + other.mask,
            self.num_samples + other.num_samples,
        )

    def minus(self, other: "LoadTimes") -> "LoadTimes":
        """Return the times of the samples that are not in `other`."""
        return self.plus(LoadTimes(-other.decode, -other.crop, -other.stack, -other.mask, -other.num_samples))

    def milliseconds(self) -> dict[str, float]:
        """Return the mean time of a sample in each stage, in milliseconds; NaN without samples."""
        return {
            stage: 1e3 * getattr(self, stage) / self.num_samples if self.num_samples else math.nan for stage in STAGES
        }


@runtime_checkable
class TimedLoader(Protocol):
    """An iterator over batches that measures how they are loaded."""

    load_times: LoadTimes
    """Times of all samples up to now."""
    num_workers: int
    """Number of its processes; with 0, the training process loads the batches itself."""


@dataclass(frozen=True, kw_only=True)
class LoadingSpeed:
    """The speed of loading in one training process, and the speed at which training could use its samples."""

    milliseconds: Mapping[str, float]
    """Mean time of a sample in each stage, in the process that loads it."""
    num_workers: int
    waited: float
    """Fraction of the time that training waits for data."""
    ceiling: float
    """Samples per second of training without waiting for data."""

    @property
    def samples_per_second(self) -> float:
        """The largest speed of loading."""
        return max(self.num_workers, 1) * 1e3 / sum(self.milliseconds.values())

    @property
    def num_workers_needed(self) -> int:
        """The number of workers that load as fast as training could use samples."""
        return math.ceil(self.ceiling * sum(self.milliseconds.values()) / 1e3)

    @property
    def expected_wait(self) -> float:
        """The fraction of the time that a long run waits for data.

        It is more than a few steps measure if they use batches that workers have prefetched.
        """
        if self.num_workers == 0:
            return self.waited
        return max(self.waited, 1 - self.samples_per_second / self.ceiling)

    def describe(self) -> str:
        """Return sentences about what limits training."""
        total = sum(self.milliseconds.values())
        shares = ", ".join(
            f"{milliseconds / total:.0%} {STAGES[stage]}"
            for stage, milliseconds in self.milliseconds.items()
            if milliseconds or stage != "mask"
        )
        cost = f"A sample takes {total:.2g} ms to load: {shares}."
        wait = f"which waits for data about {self.expected_wait:.0%} of the time"
        if self.expected_wait <= _LIMITING_WAIT:
            return f"Loading does not limit training, {wait}. {cost}"
        speeds = f"{self.samples_per_second:,.4g} samples/s, and training could take {self.ceiling:,.4g}"
        needed = f"about {format_count(self.num_workers_needed, 'worker')} would keep up, with an idle core for each"
        if self.num_workers == 0:
            advice = f"The training process loads batches itself, between steps. With data.workers, {needed}."
        elif self.num_workers_needed > self.num_workers:
            advice = f"{format_count(self.num_workers, 'worker')} can load {speeds}: {needed}."
        else:
            advice = f"{format_count(self.num_workers, 'worker')} can load {speeds}, so more may not help."
        if self.milliseconds["decode"] > total / 2:
            advice += (
                " Images and maps that are stored smaller decode faster (c2fmae data pack with --short-side and "
                "--label-stride); with data.cache=true, scenes that fit in memory are decoded once."
            )
        return f"Loading limits training, {wait}. {cost} {advice}"


def summarise_loading(rows: Sequence[Mapping[str, Any]], *, world_size: int) -> LoadingSpeed | None:
    """Return the mean speed over rows of `timing.jsonl`; None if none of them has times of loading.

    The first row, in which processes start, counts only if there is no other.
    """
    keys = ("seconds", "waited", "samples_per_second", *(f"{stage}_ms" for stage in STAGES))
    defaults = {"mask_ms": 0.0}  # earlier versions did not time masks
    timed = [{**defaults, **row} for row in rows]
    timed = [row for row in timed if type(row.get("workers")) is int and all(is_number(row.get(key)) for key in keys)]
    timed = timed[1:] or timed
    if not timed:
        return None
    means = {key: math.fsum(row[key] for row in timed) / len(timed) for key in keys}
    samples = math.fsum(row["samples_per_second"] * row["seconds"] for row in timed) / len(timed) / world_size
    return LoadingSpeed(
        milliseconds={stage: means[f"{stage}_ms"] for stage in STAGES},
        num_workers=timed[-1]["workers"],
        waited=means["waited"],
        ceiling=samples / max(means["seconds"] * (1 - means["waited"]), 1e-9),
    )
