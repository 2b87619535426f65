"""`c2fmae data pack`, `generate`, `corrupt` and `import`: commands that write data sets."""

from collections.abc import Callable
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer
from c2fmae_cli.data_options import (
    BoxesOnlyOption,
    DatasetArgument,
    GranularitiesOption,
    KeysOption,
    WorkersOption,
    open_chosen_scenes,
)

if TYPE_CHECKING:
    from c2fmae.data.scenes import Scenes

import_ = typer.Typer(help="Pack a well-known data set from its official layout.", no_args_is_help=True)

OutputDirArgument = Annotated[
    Path, typer.Argument(metavar="OUT", help="The output directory: new, empty, or begun by the same command.")
]
LabelStrideOption = Annotated[
    int | None, typer.Option(help="Image pixels per map cell, along each side (default 4; 1 stores maps at full size).")
]
ShortSideOption = Annotated[
    int | None, typer.Option(help="Resize images, their maps and objects, to this length of the shorter side.")
]
SeedOption = Annotated[int, typer.Option(help="Seed of all random numbers.")]
PackSetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="shard_size=1000, the scenes of a shard, or name=scenes, the prefix of shard names. Repeatable.",
    ),
]

IMPORTS = {
    "coco-panoptic": ("COCO with panoptic maps: 80 thing and 53 stuff classes.", "train2017"),
    "coco-instances": ("COCO with the instance maps of its objects.", "train2017"),
    "coco-stuff": ("COCO-Stuff: 80 thing and 91 stuff classes, without instance maps.", "train2017"),
    "voc": ("PASCAL VOC 2012, the images with segmentation maps.", "train"),
    "ade20k": ("ADE20K, 150 classes.", "training"),
    "cityscapes": ("Cityscapes with fine annotations, 19 classes.", "train"),
}
"""Summary and default split of each data set that `c2fmae data import` reads."""


def pack(
    source: DatasetArgument,
    out: OutputDirArgument,
    label_stride: LabelStrideOption = None,
    short_side: ShortSideOption = None,
    keys: KeysOption = None,
    granularities: GranularitiesOption = None,
    boxes_only: BoxesOnlyOption = False,
    workers: WorkersOption = None,
    set_: PackSetOption = None,
) -> None:
    """Write scenes as tar shards for training. Run it again to continue an interrupted pack.

    Image files are copied unchanged unless --short-side resizes them. KEY.json and other extra files are left out.
    """
    scenes = open_chosen_scenes(source, granularities, keys, boxes_only=boxes_only)
    _pack_scenes(scenes, out, label_stride, short_side, workers, set_)


def generate(
    out: OutputDirArgument,
    count: Annotated[int, typer.Option(min=1, help="Number of scenes.")] = 1000,
    size: Annotated[int, typer.Option(help="Height and width in pixels.")] = 224,
    difficulty: Annotated[str, typer.Option(help="plain, easy, medium or hard.")] = "medium",
    seed: SeedOption = 0,
    label_stride: LabelStrideOption = None,
    workers: WorkersOption = None,
    set_: PackSetOption = None,
) -> None:
    """Generate scenes of textured stuff and overlapping objects with exact maps, and pack them."""
    from c2fmae.data.sources import open_scenes

    scenes = open_scenes("generated", size=size, length=count, seed=seed, difficulty=difficulty)
    _pack_scenes(scenes, out, label_stride, None, workers, set_)


def corrupt(
    source: DatasetArgument,
    out: OutputDirArgument,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A corruption, or noise, blur, weather, digital or extra. Repeatable."),
    ] = None,
    severity: Annotated[
        list[int] | None, typer.Option(min=1, max=5, help="A severity; by default all five. Repeatable.")
    ] = None,
    image_size: Annotated[int | None, typer.Option(help="First crop images to this height and width.")] = None,
    quality: Annotated[int | None, typer.Option(help="JPEG quality (default 85, as in ImageNet-C).")] = None,
    seed: SeedOption = 0,
    limit: Annotated[
        int | None, typer.Option(min=1, help="At most this many images, evenly spaced over the data.")
    ] = None,
    keys: KeysOption = None,
    workers: WorkersOption = None,
) -> None:
    """Create a set like ImageNet-C from any images. Run it again to continue or extend the set.

    By default with the 15 corruptions of mCE; --only extra selects the other four.
    """
    from c2fmae.core.progress import ProgressDisplay
    from c2fmae.core.text import format_count
    from c2fmae.data.combine import select_evenly
    from c2fmae.data.corruption.make_set import CorruptionConfig, corrupt_scenes, describe_source
    from c2fmae.data.corruption.names import CORRUPTIONS, SEVERITIES, select_corruptions
    from c2fmae.data.process_pool import choose_num_workers

    corruptions = select_corruptions(only) if only else CORRUPTIONS
    severities = tuple(sorted(set(severity))) if severity else SEVERITIES
    config = CorruptionConfig.from_dict(
        _without_none(image_size=image_size, quality=quality, seed=seed), source="data corrupt"
    )
    scenes = open_chosen_scenes(source, "rgb", keys)
    scenes = select_evenly(scenes, limit) if limit else scenes
    total = len(scenes) * len(corruptions) * len(severities)
    with ProgressDisplay(total_steps=total, name="corrupting", unit="images") as display:
        report = corrupt_scenes(
            scenes,
            out,
            config,
            corruptions=corruptions,
            severities=severities,
            source=describe_source(source, scenes),
            workers=choose_num_workers(workers, total),
            progress=display.advance,
        )
    existing = f", {report.num_existing} existed" if report.num_existing else ""
    print(
        f"wrote {out}: {format_count(report.num_images, 'image', 'images')}"
        f" × {format_count(len(corruptions), 'corruption', 'corruptions')}"
        f" × {format_count(len(severities), 'severity', 'severities')}: "
        f"{report.num_written} written, {report.num_bytes / 1e6:.1f} MB{existing}"
    )
    if report.unfinished:
        names = sorted({corruption for corruption, _ in report.unfinished})
        print(f"note: an earlier run did not finish {', '.join(names)}. Run it again to finish them")
    print(f"next: c2fmae data preview {quote(f'{out}/{corruptions[0]}/{severities[-1]}')}")
    if scenes.info.labels:
        print(f"      c2fmae eval robustness MODEL --custom NAME={quote(str(out))}")


def _make_import_command(name: str, default_split: str) -> Callable[..., None]:
    def command(
        root: Annotated[
            Path, typer.Argument(metavar="ROOT", help="The directory that the official archives were unpacked into.")
        ],
        out: OutputDirArgument,
        split: Annotated[str, typer.Option(help="The split to import.")] = default_split,
        label_stride: LabelStrideOption = None,
        short_side: ShortSideOption = None,
        workers: WorkersOption = None,
        set_: PackSetOption = None,
    ) -> None:
        from c2fmae.data.importers import IMPORTERS

        _pack_scenes(IMPORTERS[name](root, split), out, label_stride, short_side, workers, set_)

    return command


for _name, (_summary, _split) in IMPORTS.items():
    import_.command(_name, help=_summary)(_make_import_command(_name, _split))


def _pack_scenes(
    scenes: "Scenes",
    out: Path,
    label_stride: int | None,
    short_side: int | None,
    workers: int | None,
    overrides: list[str] | None,
) -> None:
    from c2fmae.core.progress import ProgressDisplay
    from c2fmae.core.text import format_count
    from c2fmae.data.pack import PackConfig, pack_scenes
    from c2fmae.data.process_pool import choose_num_workers

    values = _without_none(label_stride=label_stride, short_side=short_side)
    config = PackConfig.from_dict(values, overrides or [], source="data pack")
    with ProgressDisplay(total_steps=len(scenes), name="packing", unit="scenes") as display:
        report = pack_scenes(
            scenes, out, config, workers=choose_num_workers(workers, len(scenes)), progress=display.advance
        )
    existing = f" ({report.num_existing_shards} existed)" if report.num_existing_shards else ""
    shards = format_count(report.num_shards, "shard", "shards")
    print(
        f"wrote {out}: {format_count(report.num_scenes, 'scene', 'scenes')} in {shards}{existing}, "
        f"{report.num_bytes / 1e6:.1f} MB"
    )
    print(f"next: c2fmae data preview {quote(str(out))}")


def _without_none(**values: object) -> dict[str, object]:
    return {key: value for key, value in values.items() if value is not None}
