"""Labelling of images: from a source of images and labellers to shards with maps.

Any number of processes may work on one directory, each on its own shards. The one that finds all of them finishes it.
"""

from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from c2fmae.core.distributed import World
from c2fmae.core.errors import UserError
from c2fmae.core.files import write_atomic
from c2fmae.core.granularity import IGNORE
from c2fmae.core.progress import ProgressDisplay
from c2fmae.data.combine import select_evenly
from c2fmae.data.info import DATASET_FILE, DatasetInfo
from c2fmae.data.scenes import Scenes
from c2fmae.data.shard_writing import ShardSet, remove_unfinished
from c2fmae.data.sources import DataSource, open_scenes
from c2fmae.data.stored import sort_coarse_to_fine
from c2fmae.labelling.config import LabelConfig, Part
from c2fmae.labelling.context import LabellerContext
from c2fmae.labelling.describe import combine_knowledge
from c2fmae.labelling.manifest import (
    MANIFEST_FILE,
    ManifestCounts,
    count_rows,
    read_failed_rows,
    write_manifest,
)
from c2fmae.labelling.pipeline import BatchReport
from c2fmae.labelling.plan import (
    MIXED_MACHINES,
    LabelWork,
    label_plan,
    lock_part,
    lock_plan,
    remove_unused_locks,
    rows_path,
    start_work,
)
from c2fmae.labelling.protocol import Labeller
from c2fmae.labelling.quality import write_quality_page
from c2fmae.labelling.shard_labelling import ShardLabelling

TIMEOUT = timedelta(days=2)
"""Timeout of the barrier at the end: ranks label different images, so some end long before others."""

_MIN_IMAGES = 1000  # before their failures stop a labelling
_NAMED_FAILURES = 3


RunShards = Callable[[Sequence[int], str], Generator[BatchReport, None, None]]
"""Writes shards by number, with the digest of the plan in their records, and yields a report after each batch."""


@dataclass(frozen=True)
class LabelReport:
    """Counts of a labelling."""

    num_shards: int
    num_existing_shards: int
    """Number of shards, of those of this part, that an earlier command had written."""
    num_missing_shards: int
    """Number of shards that other parts have to write; 0 if the data set is finished."""
    counts: ManifestCounts = field(default_factory=ManifestCounts)
    """Images by status, if the data set is finished."""
    num_bytes: int = 0
    """Size of all shards, if the data set is finished."""


def open_images(source: DataSource, *, keys: Collection[str] | None = None, limit: int | None = None) -> Scenes:
    """Open the images of a source without its maps: those with some keys, and at most `limit`, evenly spaced."""
    scenes = open_scenes(source, granularities=("rgb",), keys=keys)
    if scenes.info.channels not in (1, 3):
        raise UserError(
            f"images of {scenes.info.channels} channels cannot be labelled (expected 1 or 3). Convert them to RGB"
        )
    return select_evenly(scenes, limit) if limit else scenes


def make_context(config: LabelConfig, info: DatasetInfo, world: World) -> LabellerContext:
    """Return what labellers get besides their options."""
    precision = config.precision
    if precision == "auto":
        precision = "bf16" if world.device.type == "cuda" else "fp32"
    return LabellerContext(
        info=info,
        names=config.names,
        device=str(world.device),
        precision=precision,
        batch_size=config.batch_size,
    )


def label_images(
    scenes: Scenes,
    labellers: Sequence[Labeller],
    out: str | Path,
    config: LabelConfig,
    context: LabellerContext,
    *,
    world: World | None = None,
    part: Part | None = None,
    again: bool = False,
    workers: int = 1,
    run_shards: RunShards | None = None,
    is_quiet: bool = False,
) -> LabelReport:
    """Write images and their maps to shards in `out`; call it again to finish an interrupted labelling.

    Args:
        scenes: the images, as `open_images` opens them.
        labellers: each map is made by one of them (`build_labellers`).
        out: a new or empty directory, or one that was begun with the same images, labellers and settings.
        config: settings.
        context: that of the labellers (`make_context`).
        world: the processes that divide the work.
        part: label only some of the shards; other commands label the others.
        again: first remove the shards with images that failed.
        workers: number of threads that decode and encode; with 0, the calling thread does it.
        run_shards: writes the shards in other processes, as a `ray_engine.RayEngine` does.
        is_quiet: show no progress.
    """
    world, part = world or World(), part or Part()
    shards = ShardSet.from_keys(Path(out), scenes.keys, name=config.name, shard_size=config.shard_size)
    with lock_part(shards.out, part) if world.is_main else nullcontext():
        started = None
        if world.is_main:
            plan = label_plan(scenes, labellers, shards, config, context)
            started = start_work(plan, shards, part, mixed_machines=config.mixed_machines, again=again)
        work: LabelWork = world.broadcast_object(started)
        own = work.missing[world.rank :: world.size]
        if run_shards is None:
            reports = ShardLabelling(scenes, labellers, shards, config, work.plan_digest, workers).run(own)
        else:
            reports = run_shards(own, work.plan_digest)
        num_images = sum(len(shards.indices(shard)) for shard in own)
        _show_progress(reports, num_images, config, is_quiet=is_quiet or not world.is_main)
        world.barrier()
        report = _finish(scenes, labellers, shards, config, work) if world.is_main else None
    result: LabelReport = world.broadcast_object(report)
    return result


def make_info(source: DatasetInfo, labellers: Sequence[Labeller], config: LabelConfig) -> DatasetInfo:
    """Return the content of `dataset.json`."""
    made = {name for labeller in labellers for name in labeller.granularities}
    images = {"rgb"} if config.images == "keep" else set()
    return source.model_copy(
        update={
            "granularities": sort_coarse_to_fine(made | images),
            "classes": next((labeller.classes for labeller in labellers if "semantic" in labeller.granularities), ()),
            "object_classes": (),
            "maps_know_labels": combine_knowledge(labellers),
            "ignore": IGNORE,
            "offset": 0,
            "colours": (),
            "label_stride": config.label_stride,
        }
    )


def _show_progress(
    reports: Generator[BatchReport, None, None], num_images: int, config: LabelConfig, *, is_quiet: bool
) -> None:
    """Label, with a progress bar, until too many images fail."""
    done, reasons = 0, list[str]()
    display = ProgressDisplay(
        total_steps=num_images,
        name="labelling",
        unit="images",
        value_labels={"failed": "failed"},
        is_quiet=is_quiet or not num_images,
    )
    with display, closing(reports):
        for report in reports:
            done += report.num_images
            reasons += report.failures
            waited = report.wait_seconds / report.seconds if report.seconds else 0.0
            display.update(done, {"failed": len(reasons)}, seconds=report.seconds, wait_fraction=waited)
            _check_failures(reasons, done, config)


def _check_failures(reasons: Sequence[str], num_images: int, config: LabelConfig) -> None:
    """Raise an error if too many images fail: they are more likely to be missing than to be broken."""
    if num_images >= _MIN_IMAGES and len(reasons) > config.max_failed * num_images:
        named = "; ".join(reasons[:_NAMED_FAILURES])
        raise UserError(
            f"{len(reasons):,} of {num_images:,} images cannot be read, more than the fraction max_failed ="
            f" {config.max_failed:g}: {named}. Check the images, or set a higher max_failed"
        )


def _finish(
    scenes: Scenes, labellers: Sequence[Labeller], shards: ShardSet, config: LabelConfig, work: LabelWork
) -> LabelReport:
    """Write the files of the whole data set, if all shards exist."""
    out = shards.out
    if missing := shards.missing():
        return LabelReport(len(shards), work.num_existing, len(missing))
    with lock_plan(out):
        if not work.missing and (out / DATASET_FILE).exists():
            counts = count_rows(out / MANIFEST_FILE)
        else:
            rows = [rows_path(shards, shard) for shard in range(len(shards))]
            counts = sum((count_rows(path) for path in rows), ManifestCounts())
            if counts.failed:
                reasons = [row["why"] for path in rows for _, row in read_failed_rows(path)]
                _check_failures(reasons, counts.total, config)
                if counts.failed == counts.total:
                    raise UserError(f"no image can be read: {'; '.join(reasons[:_NAMED_FAILURES])}. Check the images")
            keys = scenes.keys
            write_manifest(out, rows, ([keys[i] for i in shards.indices(shard)] for shard in range(len(shards))))
            remove_unfinished(out)
            remove_unused_locks(out)
            info = make_info(scenes.info, labellers, config)
            write_quality_page(shards, info)
            if work.mixed_machines:
                info = info.model_copy(update={MIXED_MACHINES: list(work.mixed_machines)})
            write_atomic(out / DATASET_FILE, info.to_json().encode())
    return LabelReport(len(shards), work.num_existing, 0, counts, shards.num_bytes())
