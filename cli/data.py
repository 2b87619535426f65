"""`c2fmae data …`: look at data, check it, and bring it into the form that training reads."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from c2fmae.data.check import CheckReport
    from c2fmae.data.scenes import Scenes

data = typer.Typer(help="Make, import, check, look at, pack and corrupt data sets.", no_args_is_help=True)
import_ = typer.Typer(help="Pack a well-known data set from its official layout.", no_args_is_help=True)
data.add_typer(import_, name="import")

DatasetArgument = Annotated[
    str, typer.Argument(help="A folder, a shard, a pattern of shards such as 'voc/train-*.tar', or `generated`.")
]
DatasetDirArgument = Annotated[
    Path, typer.Argument(metavar="OUT", help="The folder to write: new, empty, or begun before.")
]
GranularitiesOption = Annotated[
    str | None,
    typer.Option(metavar="NAME,…", help="What to read, as in rgb for photos alone; by default all there is."),
]
KeysOption = Annotated[
    Path | None, typer.Option(help="Take these samples alone: a key a line, as --fix-list writes them.")
]
LabelStrideOption = Annotated[
    int | None, typer.Option(help="Pixels a side for each cell of the maps (default 4; 1 keeps all).")
]
ShortSideOption = Annotated[
    int | None, typer.Option(help="Bring photos down to this shorter side, and the maps with them.")
]
WorkersOption = Annotated[
    int | None, typer.Option(min=1, help="Processes; by default one for each core, if there is work.")
]
PackSetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="shard_size=… or name=…; repeatable.")
]

_SCENES_PER_WORKER = 2000  # starting one takes a few seconds: it imports torch
_PROGRESS_INTERVAL = 5


@data.command()
def check(
    source: DatasetArgument,
    good_keys: Annotated[
        Path | None, typer.Option("--fix-list", help="Write the keys of all good samples to this file.")
    ] = None,
    granularities: GranularitiesOption = None,
    workers: WorkersOption = None,
    suite: Annotated[
        str | None,
        typer.Option(
            "--as",
            metavar="SET",
            help="Tell instead what it lacks of imagenet-val, imagenet-a, imagenet-r, sketch or imagenet-c, or is odd.",
        ),
    ] = None,
) -> None:
    """Decode everything, list all that is wrong, count the classes; ends with 1 if anything is wrong."""
    from c2fmae.core.errors import UserError
    from c2fmae.data.check import format_class_table
    from c2fmae.data.encode import atomic_writer
    from c2fmae.data.stats import describe_stats

    if suite is not None:
        if (good_keys, granularities, workers) != (None, None, None):
            message = "looks at names, counts and a few photos, so no other option goes with it. Leave them out"
            raise UserError(f"--as: {message}")
        _check_suite(source, suite)
        return
    if good_keys is not None and not good_keys.parent.is_dir():
        raise UserError(f"{good_keys}: its folder does not exist. Make it, or give another place")
    report = _run_check(source, granularities, workers)
    for problem in report.problems:
        print(f"problem: {problem.text}")
    if report.class_pixels.any():
        print(format_class_table(report))
    print(describe_stats(report))
    if report.absent_classes:
        print(f"note: no map has {len(report.absent_classes)} of the classes: {', '.join(report.absent_classes)}")
    print(f"{len(report.problems)} problems, {len(report.valid_keys)} good samples")
    if good_keys is not None:
        with atomic_writer(good_keys) as stream:
            stream.write("".join(f"{key}\n" for key in report.valid_keys).encode())
        print(f"wrote {good_keys}")
    if not report.problems:
        print(f"next: c2fmae data preview {quote(source)}")
        return
    if good_keys is not None:
        print(
            f"next: c2fmae data pack {quote(source)} OUT --keys {quote(str(good_keys))}, which leaves out what is wrong"
        )
    else:
        print(
            f"next: c2fmae data check {quote(source)} --fix-list good.txt, which keeps the good samples' keys for pack"
        )
    raise typer.Exit(1)


@data.command()
def stats(
    source: DatasetArgument,
    out: Annotated[Path, typer.Option(help="The PNG to write.")] = Path("stats.png"),
    granularities: GranularitiesOption = None,
    workers: WorkersOption = None,
) -> None:
    """Count classes, objects, labels and sizes; draw them, and print them as text."""
    from c2fmae.data.check import format_class_table
    from c2fmae.data.stats import describe_stats, draw_stats
    from c2fmae.report.drawing import check_png_path, save_png

    check_png_path(out)
    report = _run_check(source, granularities, workers)
    if report.class_pixels.any():
        print(format_class_table(report))
    print(describe_stats(report))
    print(f"wrote {save_png(draw_stats(report), out)}")
    if report.problems:
        print(f"{len(report.problems)} problems; next: c2fmae data check {quote(source)}, which lists them")
    else:
        print(f"next: c2fmae data preview {quote(source)}")


@data.command()
def preview(
    source: DatasetArgument,
    out: Annotated[Path, typer.Option(help="The PNG to write.")] = Path("preview.png"),
    scenes: Annotated[int, typer.Option(min=1, help="How many, spread evenly over the source.")] = 8,
    granularities: GranularitiesOption = None,
) -> None:
    """Draw a few scenes: photo, semantic map, instance map, label and classes."""
    from c2fmae.data.preview import draw_preview
    from c2fmae.report.drawing import check_png_path, save_png

    check_png_path(out)
    opened = _open_scenes(source, granularities, None)
    print(f"wrote {save_png(draw_preview(opened, scenes, title=opened.info.name or source), out)}")
    print(f"next: c2fmae data stats {quote(source)}")


@data.command()
def pack(
    source: DatasetArgument,
    out: DatasetDirArgument,
    label_stride: LabelStrideOption = None,
    short_side: ShortSideOption = None,
    keys: KeysOption = None,
    granularities: GranularitiesOption = None,
    workers: WorkersOption = None,
    set_: PackSetOption = None,
) -> None:
    """Write scenes as tar shards for training; run it again to finish what was interrupted.

    Photos keep their very bytes unless --short-side changes their size; KEY.json and other extras are left out.
    """
    _run_pack(_open_scenes(source, granularities, keys), out, label_stride, short_side, workers, set_)


@data.command()
def generate(
    out: DatasetDirArgument,
    count: Annotated[int, typer.Option(min=1, help="How many scenes.")] = 1000,
    size: Annotated[int, typer.Option(help="Pixels a side.")] = 224,
    difficulty: Annotated[str, typer.Option(help="plain, easy, medium or hard.")] = "medium",
    seed: Annotated[int, typer.Option(help="The same seed gives the same scenes.")] = 0,
    label_stride: LabelStrideOption = None,
    workers: WorkersOption = None,
    set_: PackSetOption = None,
) -> None:
    """Make scenes of textured stuff and overlapping things with exact maps, and pack them."""
    from c2fmae.data.sources import open_scenes

    scenes = open_scenes("generated", size=size, length=count, seed=seed, difficulty=difficulty)
    _run_pack(scenes, out, label_stride, None, workers, set_)


@data.command()
def corrupt(
    source: DatasetArgument,
    out: DatasetDirArgument,
    corruption: Annotated[
        list[str] | None,
        typer.Option(
            "--only", metavar="NAME", help="A corruption, or noise, blur, weather, digital, extra; repeatable."
        ),
    ] = None,
    severity: Annotated[list[int] | None, typer.Option(min=1, max=5, help="By default all five; repeatable.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Cut photos to so many pixels a side first.")] = None,
    quality: Annotated[int | None, typer.Option(help="Of the JPEGs (default 85, as ImageNet-C).")] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same photos.")] = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="Take so many, spread evenly over the source.")] = None,
    keys: KeysOption = None,
    workers: WorkersOption = None,
) -> None:
    """Make a set like ImageNet-C of any photos; run it again to finish what was interrupted, or to add to it.

    By default the 15 corruptions that mCE is made of; the four others come with --only extra.
    """
    from c2fmae.data.combine import select_evenly
    from c2fmae.data.corruption.make_set import CorruptionConfig, corrupt_scenes
    from c2fmae.data.corruption.names import CORRUPTIONS, SEVERITIES, select_corruptions

    corruptions = select_corruptions(corruption) if corruption else CORRUPTIONS
    severities = tuple(sorted(set(severity))) if severity else SEVERITIES
    options = {"image_size": image_size, "quality": quality, "seed": seed}
    config = CorruptionConfig.from_dict(
        {k: value for k, value in options.items() if value is not None}, source="data corrupt"
    )
    scenes = _open_scenes(source, "rgb", keys)
    scenes = select_evenly(scenes, limit) if limit else scenes
    total = len(scenes) * len(corruptions) * len(severities)
    with _show_progress("corrupting", total, "photos") as advance:
        report = corrupt_scenes(
            scenes,
            out,
            config,
            corruptions=corruptions,
            severities=severities,
            source=_source_display_name(source, scenes),
            workers=_choose_num_workers(workers, total),
            progress=advance,
        )
    reused_note = f", {report.num_existing} more were there" if report.num_existing else ""
    print(
        f"wrote {out}: {report.num_images} photos by {len(corruptions)} corruptions at {len(severities)} severities:"
        f" {report.num_written} made, {report.num_bytes / 1e6:.1f} MB{reused_note}"
    )
    if report.unfinished:
        names = sorted({corruption for corruption, _ in report.unfinished})
        print(f"note: an earlier run did not finish {', '.join(names)}. Run it again to do that")
    preview_command = f"c2fmae data preview {quote(f'{out}/{corruptions[0]}/{severities[-1]}')}"
    has_labels = bool(scenes.info.labels)
    print(
        f"next: {preview_command}" + f", or c2fmae eval robustness MODEL --custom NAME={quote(str(out))}" * has_labels
    )


def _source_display_name(source: str, scenes: "Scenes") -> str:
    """What a report calls the scenes: by their data set's name, if it has one, and the last part of what was typed."""
    last = Path(source).resolve().name
    return f"{scenes.info.name} ({last})" if scenes.info.name and source != "generated" else scenes.info.name or last


def _register_importer(
    name: str, summary: str, default_split: str, open_split: Callable[[Path, str], "Scenes"]
) -> None:
    """Make the command of one data set; all take the same words."""

    def command(
        root: Annotated[Path, typer.Argument(help="The folder that the official archives were unpacked into.")],
        out: DatasetDirArgument,
        split: Annotated[str, typer.Option(help=f"{default_split}, …")] = default_split,
        label_stride: LabelStrideOption = None,
        short_side: ShortSideOption = None,
        workers: WorkersOption = None,
        set_: PackSetOption = None,
    ) -> None:
        _run_pack(open_split(root, split), out, label_stride, short_side, workers, set_)

    import_.command(name, help=summary)(command)


def _open_coco_panoptic(root: Path, split: str) -> "Scenes":
    from c2fmae.data.importers.coco import CocoPanoptic

    return CocoPanoptic(root, split)


def _open_coco_instances(root: Path, split: str) -> "Scenes":
    from c2fmae.data.importers.coco import CocoInstances

    return CocoInstances(root, split)


def _open_voc(root: Path, split: str) -> "Scenes":
    from c2fmae.data.importers.voc import Voc

    return Voc(root, split)


def _open_ade20k(root: Path, split: str) -> "Scenes":
    from c2fmae.data.importers.ade20k import Ade20k

    return Ade20k(root, split)


_register_importer(
    "coco-panoptic", "COCO with its panoptic maps: 80 things and 53 kinds of stuff.", "train2017", _open_coco_panoptic
)
_register_importer("coco-instances", "COCO with its objects alone.", "train2017", _open_coco_instances)
_register_importer("voc", "PASCAL VOC 2012, the images that are segmented.", "train", _open_voc)
_register_importer("ade20k", "ADE20K, 150 classes.", "training", _open_ade20k)


def _open_scenes(source: str, granularities: str | None, keys: Path | None) -> "Scenes":
    from c2fmae.core.errors import UserError
    from c2fmae.data.sources import open_scenes

    chosen = None
    if keys is not None:
        try:
            # Not splitlines: a name may hold what Unicode takes for a line's end.
            chosen = [key for key in keys.read_text(encoding="utf-8-sig").split("\n") if key]
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{keys}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    return open_scenes(source, granularities=_split_granularities(granularities), keys=chosen)


def _run_check(source: str, granularities: str | None, workers: int | None) -> "CheckReport":
    from c2fmae.data.check import check_dataset
    from c2fmae.data.sources import inspect_scenes

    scenes, problems = inspect_scenes(source, granularities=_split_granularities(granularities))
    total = len(scenes) if scenes is not None else 0
    with _show_progress("checking", total) as advance:
        return check_dataset(scenes, problems, workers=_choose_num_workers(workers, total), progress=advance)


def _check_suite(source: str, kind: str) -> None:
    from c2fmae.core.text import format_count
    from c2fmae.data.suites import CUSTOM, check_suite, resolve_suite

    checked = check_suite(kind, source)
    for sentence in checked.findings:
        print(f"odd: {sentence}")
    print(checked.summary)
    print(format_count(len(checked.findings), "odd thing", "odd things") if checked.findings else "nothing odd")
    kind = resolve_suite(kind)
    option = f"--custom NAME={quote(source)}" if kind == CUSTOM else f"--{kind} {quote(source)}"
    print(f"next: {'mend that, or go on with it: ' if checked.findings else ''}c2fmae eval robustness MODEL {option}")
    if checked.findings:
        raise typer.Exit(1)


def _run_pack(
    scenes: "Scenes",
    out: Path,
    label_stride: int | None,
    short_side: int | None,
    workers: int | None,
    overrides: list[str] | None,
) -> None:
    from c2fmae.data.pack import PackConfig, pack_scenes

    options = {"label_stride": label_stride, "short_side": short_side}
    values = {key: value for key, value in options.items() if value is not None}
    config = PackConfig.from_dict(values, overrides or [], source="data pack")
    with _show_progress("packing", len(scenes)) as advance:
        report = pack_scenes(scenes, out, config, workers=_choose_num_workers(workers, len(scenes)), progress=advance)
    reused_note = f", {report.num_existing_shards} of them finished before" if report.num_existing_shards else ""
    print(
        f"wrote {out}: {report.num_scenes} scenes in {report.num_shards} shards{reused_note}, "
        f"{report.num_bytes / 1e6:.1f} MB"
    )
    print(f"next: c2fmae data preview {quote(str(out))}")


def _split_granularities(granularities: str | None) -> tuple[str, ...] | None:
    return tuple(name.strip() for name in granularities.split(",")) if granularities is not None else None


def _choose_num_workers(workers: int | None, num_samples: int) -> int:
    """How many processes: those asked for, else no more than pay for their start."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return workers or min(cores, 1 + num_samples // _SCENES_PER_WORKER)


@contextmanager
def _show_progress(verb: str, total: int, unit: str = "scenes") -> Iterator[Callable[[int], None]]:
    """Show how far it is: a bar on a terminal, a line every few seconds elsewhere."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    if sys.stderr.isatty():

        class Speed(ProgressColumn):
            def render(self, task: Task) -> Text:
                return Text(f"{task.speed or 0:.0f} {unit}/s")

        columns = (TextColumn(verb), BarColumn(), MofNCompleteColumn(), Speed(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(verb, total=total)
            yield lambda done: bar.advance(task, done)
        return

    done = done_at_start = 0
    started_at = last_printed = 0.0

    def report_progress(more: int) -> None:
        nonlocal done, done_at_start, started_at, last_printed
        done, now = done + more, time.monotonic()
        if not started_at:  # the first to come: what it took is the start of the processes
            started_at = last_printed = now
            done_at_start = done
        elif now - last_printed >= _PROGRESS_INTERVAL:
            last_printed, speed = now, (done - done_at_start) / (now - started_at)
            left = (total - done) / speed
            print(f"{verb}: {done} of {total} {unit}, {speed:.0f}/s, {left:.0f} s left", file=sys.stderr)

    yield report_progress
