"""`c2fmae data …`: create, import, check, compare, draw, pack and corrupt data sets."""

from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer
from c2fmae_cli.data_compare import compare
from c2fmae_cli.data_create import corrupt, generate, import_, pack
from c2fmae_cli.data_options import (
    BoxesOnlyOption,
    GranularitiesOption,
    WorkersOption,
    open_chosen_scenes,
    split_granularities,
)
from c2fmae_cli.options import FigureOption

if TYPE_CHECKING:
    from c2fmae.data.check import CheckReport

data = typer.Typer(help="Create, import, check, compare, draw, pack and corrupt data sets.", no_args_is_help=True)

DatasetsArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="SOURCE...",
        help="A folder, a shard, a pattern of shards such as 'voc/train-*.tar', objects (a COCO json, images of YOLO, "
        "a list of VOC), or `generated`. Several are one set; of a folder with train and val, each is a set.",
    ),
]


@data.command()
def check(
    sources: DatasetsArgument,
    good_keys: Annotated[
        Path | None, typer.Option("--fix-list", metavar="FILE", help="Write the keys of all valid samples to a file.")
    ] = None,
    granularities: GranularitiesOption = None,
    boxes_only: BoxesOnlyOption = False,
    workers: WorkersOption = None,
    suite: Annotated[
        str | None,
        typer.Option(
            "--as",
            metavar="SUITE",
            help="Compare with a complete set of this suite instead, such as imagenet-a (see `c2fmae plugins`).",
        ),
    ] = None,
) -> None:
    """Decode all samples, list every problem, and count classes. The exit code is 1 if there are problems."""
    from c2fmae.core.errors import UserError
    from c2fmae.core.text import escape_lines, format_count
    from c2fmae.data.check import describe_missing_classes, describe_object_notes
    from c2fmae.data.key_list import write_keys

    if suite is not None:
        if (good_keys, granularities, workers, boxes_only) != (None, None, None, False):
            names = "--fix-list, --granularities, --boxes-only or --workers"
            raise UserError(f"--as: cannot be combined with {names}. Leave them out")
        if len(sources) > 1:
            raise UserError("--as: compares one set. Give one SOURCE")
        _check_suite(sources[0], suite)
        return
    broken: list[tuple[str, str]] = []  # the sets with problems: their source, and the file of their valid keys
    for name, source in _find_sets(sources).items():
        _print_heading(name, source)
        report = _check_scenes(source, granularities, workers, boxes_only=boxes_only)
        for problem in report.problems:
            print(f"problem: {problem.text}")
        _print_stats(report)
        if report.absent_classes:
            absent = format_count(len(report.absent_classes), "class is", "classes are")
            print(f"note: {absent} in no map: {', '.join(map(escape_lines, report.absent_classes))}")
        for note in describe_object_notes(report):
            print(f"note: {note}")
        if report.num_unlabelled:
            images = format_count(report.num_unlabelled, "image has", "images have")
            print(f"note: {images} no labelled pixel, which adds nothing to a training on the maps")
        if description := describe_missing_classes(report):
            print(f"note: {description}")
        if report.num_losing_bits:
            images = format_count(report.num_losing_bits, "image has", "images have")
            print(f"note: {images} 16 bits, of which the upper 8 are read; `c2fmae data measure` chooses others")
        counts = format_count(len(report.problems), "problem", "problems"), len(report.valid_keys)
        print(f"{counts[0]}, {format_count(counts[1], 'valid sample', 'valid samples')}")
        keys_path = _path_of_set(good_keys, name) if good_keys is not None else None
        if keys_path is not None:
            write_keys(keys_path, report.valid_keys)
            print(f"wrote {keys_path}")
        if report.problems:
            broken.append((_quote_all(source), quote(str(keys_path))))
    flag = " --boxes-only" if boxes_only else ""
    if not broken:
        print(f"next: c2fmae data preview {_quote_all(sources)}{flag}")
        return
    source_words, keys_word = broken[0]
    if len(sources) > 1:  # `data pack` takes one
        print(f"next: c2fmae data check {quote(sources[0])}{flag} --fix-list good.txt  # or another, for data pack")
    elif good_keys is not None:
        print(f"next: c2fmae data pack {source_words} OUT{flag} --keys {keys_word}  # packs the valid samples")
    else:
        arguments = f"{_quote_all(sources)}{flag} --fix-list good.txt"
        print(f"next: c2fmae data check {arguments}  # lists the valid samples, for data pack")
    raise typer.Exit(1)


@data.command()
def stats(
    sources: DatasetsArgument,
    out: FigureOption = Path("stats.png"),
    granularities: GranularitiesOption = None,
    boxes_only: BoxesOnlyOption = False,
    workers: WorkersOption = None,
) -> None:
    """Count classes, objects, labels and image sizes; draw the counts and print them."""
    from c2fmae.core.errors import UserError
    from c2fmae.core.text import format_count
    from c2fmae.data.stats import draw_stats
    from c2fmae.report.drawing import check_png_path, save_png

    check_png_path(out)
    flag, has_problems = " --boxes-only" if boxes_only else "", False
    for name, source in _find_sets(sources).items():
        _print_heading(name, source)
        report = _check_scenes(source, granularities, workers, boxes_only=boxes_only)
        if not report.num_scenes:
            raise UserError(report.problems[0].text if report.problems else f"{source}: has no scenes. Use other data")
        _print_stats(report)
        print(f"wrote {save_png(draw_stats(report), _path_of_set(out, name))}")
        if report.problems:
            has_problems = True
            print(f"{format_count(len(report.problems), 'sample', 'samples')} with problems were skipped")
    print(f"next: c2fmae data {'check' if has_problems else 'preview'} {_quote_all(sources)}{flag}")


@data.command()
def preview(
    sources: DatasetsArgument,
    out: FigureOption = Path("preview.png"),
    scenes: Annotated[int, typer.Option(min=1, help="Number of scenes, evenly spaced over the data.")] = 8,
    granularities: GranularitiesOption = None,
    boxes_only: BoxesOnlyOption = False,
) -> None:
    """Draw a few scenes: image, objects, semantic map, instance map, label and classes."""
    from c2fmae.data.preview import draw_preview
    from c2fmae.report.drawing import check_png_path, save_png

    check_png_path(out)
    for name, source in _find_sets(sources).items():
        _print_heading(name, source)
        opened = open_chosen_scenes(source, granularities, boxes_only=boxes_only)
        title = opened.info.name or ", ".join([source] if isinstance(source, str) else source)
        figure = draw_preview(opened, scenes, title=f"{title}, {name}" if name else title)
        print(f"wrote {save_png(figure, _path_of_set(out, name))}")
    print(f"next: c2fmae data stats {_quote_all(sources)}{' --boxes-only' if boxes_only else ''}")


@data.command()
def measure(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="FOLDER...",
            help="Folders of images. The first is measured, such as that for training; dataset.json is written to all.",
        ),
    ],
    limit: Annotated[int, typer.Option(min=1, help="At most this many images, evenly spaced over the data.")] = 1000,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace other values in dataset.json.")] = False,
) -> None:
    """Measure channels, range of values, mean and deviation of images, and write them into dataset.json.

    For images other than 8-bit colour: infrared, 16 bits, arrays or TIFFs of any number of channels.
    """
    from c2fmae.core.errors import UserError
    from c2fmae.core.text import format_count
    from c2fmae.data.image_statistics import (
        RANGE_PERCENTILES,
        list_split_folders,
        measure_images,
        write_image_statistics,
    )
    from c2fmae.data.sources import open_scenes
    from c2fmae.data.stored import StoredScenes

    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: is not a folder. Give a folder of images")
    folders = list_split_folders(folders)
    scenes = open_scenes(folders[0], granularities=("rgb",))
    if not isinstance(scenes, StoredScenes):
        raise UserError(f"{folders[0]}: is not a folder of images or shards. Give one")
    statistics = measure_images(scenes, limit)
    written = write_image_statistics(folders, statistics, overwrite=overwrite)
    print(f"measured {statistics.num_images} of {format_count(len(scenes), 'image', 'images')}")
    print(f"channels     {statistics.channels}")
    if statistics.value_range is not None:
        low, high = RANGE_PERCENTILES
        ranges = ", ".join(f"{a:g} to {b:g}" for a, b in statistics.value_range)
        print(f"value range  {ranges} (percentiles {low:g} and {high:g}): read as 0 to 255; edit it in dataset.json")
    for name, values in (("mean", statistics.mean), ("std", statistics.std)):
        print(f"{name:12s} {', '.join(f'{value:g}' for value in values)}")
    for path in written:
        print(f"wrote {path}")
    print(f"next: c2fmae data check {quote(str(folders[0]))}")


data.command()(compare)
data.command()(pack)
data.command()(generate)
data.command()(corrupt)
data.add_typer(import_, name="import")


def _find_sets(sources: list[str]) -> dict[str, str | list[str]]:
    """Return the sets of a folder that holds several, by name; for anything else, one set without a name."""
    from c2fmae.core.splits import find_splits
    from c2fmae.data.objects.find import find_annotated_sets

    splits = (find_annotated_sets(Path(sources[0])) or find_splits(sources[0])) if len(sources) == 1 else {}
    return {**splits} or {"": sources[0] if len(sources) == 1 else sources}


def _print_heading(name: str, source: str | list[str]) -> None:
    if name:
        print(f"{name}: {source}")


def _path_of_set(path: Path, name: str) -> Path:
    """Return the file for one of several sets: preview-train.png for preview.png."""
    return path.with_stem(f"{path.stem}-{name}") if name else path


def _quote_all(source: str | list[str]) -> str:
    return quote(source) if isinstance(source, str) else " ".join(map(quote, source))


def _check_scenes(
    source: str | list[str], granularities: str | None, workers: int | None, *, boxes_only: bool
) -> "CheckReport":
    from c2fmae.core.progress import ProgressDisplay
    from c2fmae.data.check import check_dataset
    from c2fmae.data.objects import inspect_maps_and_objects
    from c2fmae.data.process_pool import choose_num_workers

    scenes, problems = inspect_maps_and_objects(source, split_granularities(granularities), masks=not boxes_only)
    total = len(scenes) if scenes is not None else 0
    with ProgressDisplay(total_steps=total, name="checking", unit="scenes") as display:
        return check_dataset(scenes, problems, workers=choose_num_workers(workers, total), progress=display.advance)


def _print_stats(report: "CheckReport") -> None:
    from c2fmae.data.check import format_class_table, format_object_table
    from c2fmae.data.stats import describe_stats

    if report.class_pixels.any():
        print(format_class_table(report))
    if report.annotated is not None:
        print(format_object_table(report))
    print(describe_stats(report))


def _check_suite(source: str, name: str) -> None:
    from c2fmae_cli.robustness import SUITE_OPTIONS

    from c2fmae.core.text import format_count
    from c2fmae.data.suites import CUSTOM, check_suite, resolve_suite

    report = check_suite(name, source)
    for finding in report.findings:
        print(f"problem: {finding}")
    print(report.summary)
    print(format_count(len(report.findings), "problem", "problems"))
    suite = resolve_suite(name)
    if suite == CUSTOM:
        options = f"--custom NAME={quote(source)}"
    elif suite in SUITE_OPTIONS:
        options = f"--{suite} {quote(source)}"
    else:  # a plug-in
        options = f"--set {quote(f'sets=[{{suite: {suite}, source: {source}}}]')}"
    print(f"next: c2fmae eval robustness MODEL {options}")
    if report.findings:
        raise typer.Exit(1)
