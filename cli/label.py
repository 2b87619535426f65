"""`c2fmae label`: make semantic and instance maps of images, in one process, under torchrun or under srun."""

from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from c2fmae_cli.data_compare import write_comparison_page

if TYPE_CHECKING:
    from c2fmae.labelling.label import LabelReport

COMPARISON_PAGE = "comparison.html"
"""The page in OUT that compares its maps with true ones."""

_SPEC = "NAME, NAME:PATH,PATH or package.module:Class"


def label(
    images: Annotated[str, typer.Argument(metavar="IMAGES", help="A folder, a shard, a pattern of shards, or a URL.")],
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="The output directory: new, empty, or begun by the same command.")
    ],
    instances: Annotated[
        str | None, typer.Option(metavar="LABELLER", help=f"What makes the instance maps: {_SPEC}.")
    ] = None,
    semantics: Annotated[
        str | None, typer.Option(metavar="LABELLER", help=f"What makes the semantic maps: {_SPEC}.")
    ] = None,
    names: Annotated[
        str | None,
        typer.Option(
            metavar="WHICH",
            help="Names for open-vocabulary detectors: things, everyday, own, own+things, labels, or a text file.",
        ),
    ] = None,
    truth: Annotated[
        str | None,
        typer.Option(
            metavar="SCENES", help="True maps of the same images, to compare the maps with, on a page in OUT."
        ),
    ] = None,
    part: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="Label part I (from 0) of N; other commands label the others."),
    ] = None,
    keys: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Label only these images: one key per line.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many images, evenly spaced.")] = None,
    label_stride: Annotated[
        int | None,
        typer.Option(help="Image pixels per map cell, along each side (default 4; 1: full-size maps)."),
    ] = None,
    images_option: Annotated[
        Literal["keep", "leave-out"] | None,
        typer.Option("--images", help="Store the images beside their maps (default), or only the maps."),
    ] = None,
    again: Annotated[
        Literal["failed"] | None, typer.Option(help="Write the shards that have failed images again.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Threads that decode and encode; by default one per core.")
    ] = None,
    engine: Annotated[
        Literal["ray"] | None,
        typer.Option(help="ray: label with all nodes of a Ray cluster, or with a local one if there is none."),
    ] = None,
    fit: Annotated[
        bool,
        typer.Option("--fit", help="First find the clusters of --semantics clusters:BACKBONE,FILE, and write FILE."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Label a few images and print the estimated cost. Nothing is written.")
    ] = False,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Override one setting, or instances.KEY, semantics.KEY of a labeller. Repeatable.",
        ),
    ] = None,
) -> None:
    """Make semantic and instance maps of images, and write both as tar shards for training.

    Run it again to continue after an interruption. The same command works in one process, under `torchrun` and under
    `srun`; with --part, any number of commands share a directory.
    """
    from c2fmae.core.cores import count_cores
    from c2fmae.core.distributed import init_distributed
    from c2fmae.core.errors import UserError
    from c2fmae.data.key_list import read_keys
    from c2fmae.data.sources import open_scenes
    from c2fmae.eval.maps.page import check_page_path
    from c2fmae.eval.maps.pairs import find_common_maps, match_keys
    from c2fmae.labelling.config import LabelConfig, Part
    from c2fmae.labelling.describe import describe_labelling
    from c2fmae.labelling.dry_run import measure_labelling
    from c2fmae.labelling.fit_clusters import fit_semantics
    from c2fmae.labelling.label import TIMEOUT, label_images, make_context, open_images
    from c2fmae.labelling.registry import build_labellers

    if instances is None and semantics is None:
        raise UserError("--instances, --semantics: give at least one labeller, such as --instances regions")
    if fit and dry_run:
        raise UserError("--fit: writes a file, which --dry-run does not. Fit with --limit 100 into other files first")
    given = {"names": names, "label_stride": label_stride, "images": images_option, "device": device}
    values = {key: value for key, value in given.items() if value is not None}
    config = LabelConfig.from_dict(values, set_ or [], source="label")
    chosen_part = Part.parse(part) if part is not None else Part()
    default_workers = 1 if engine == "ray" else count_cores()  # of each process, of which Ray has many
    num_workers = default_workers if workers is None else workers
    chosen_keys = read_keys(keys) if keys is not None else None
    with init_distributed(config.device, timeout=TIMEOUT) as world:
        if engine == "ray" and world.size > 1:
            raise UserError("--engine ray: starts its own processes. Run one command, without torchrun or srun")
        scenes = open_images(images, keys=chosen_keys, limit=limit)
        true_scenes = open_scenes(truth) if truth is not None else None
        if true_scenes is not None:  # an error before hours of work
            match_keys(scenes.keys, true_scenes.keys)
            check_page_path(out / COMPARISON_PAGE)
        context = make_context(config, scenes.info, world)
        if fit:
            if world.is_main:
                fit_semantics(semantics, config.semantics, scenes, context)
            world.barrier()
        run_shards = None
        if engine == "ray":
            from c2fmae.labelling.ray_engine import RayEngine

            run_shards = RayEngine(
                images=images,
                keys=chosen_keys,
                limit=limit,
                out=out,
                config=config,
                semantics=semantics,
                instances=instances,
                device="cuda" if world.device.type == "cuda" else "cpu",
                num_workers=num_workers,
            )
        labellers = build_labellers(
            semantics,
            instances,
            context,
            semantics_options=config.semantics,
            instances_options=config.instances,
        )
        if names is not None and not any("names" in labeller.describe() for labeller in labellers):
            raise UserError(f"--names {names}: no labeller here searches for names, as grounded does. Remove it")
        made = {name for labeller in labellers for name in labeller.granularities}
        if true_scenes is not None:
            find_common_maps(made, true_scenes.info.granularities)
        if world.is_main:
            for line in describe_labelling(labellers, config, context):
                print(line, flush=True)
        if dry_run:
            if world.is_main:
                print(measure_labelling(scenes, labellers, out, config, workers=num_workers))
                print("next: the same command without --dry-run")
            return
        try:
            report = label_images(
                scenes,
                labellers,
                out,
                config,
                context,
                world=world,
                part=chosen_part,
                again=again is not None,
                workers=num_workers,
                run_shards=run_shards,
            )
        except KeyboardInterrupt:
            if world.is_main:
                print(f"interrupted. Finished shards are in {out}; run the same command again to continue", flush=True)
            raise
    if world.is_main:
        _print_report(report, out, "objects" if "instance" in made else "classes")
        if report.num_missing_shards:
            print(f"next: the commands of the other parts (of {chosen_part.count}); the last one to end finishes {out}")
            return
        if truth is not None:
            write_comparison_page(str(out), truth, out / COMPARISON_PAGE, workers=workers or None)
        can_train = made == {"semantic", "instance"} and config.images == "keep"
        print(f"next: c2fmae {'pretrain c2fmae-b --data' if can_train else 'data preview'} {quote(str(out))}")


def _print_report(report: "LabelReport", out: Path, content: str) -> None:
    from c2fmae.core.text import format_count
    from c2fmae.labelling.manifest import FAILED_FILE
    from c2fmae.labelling.quality import QUALITY_PAGE

    if report.num_missing_shards:
        missing = f"{report.num_missing_shards:,} of {format_count(report.num_shards, 'shard')}"
        print(f"{out}: this part is finished; {missing} {'is' if report.num_missing_shards == 1 else 'are'} missing")
        return
    print(f"counts and contact sheets: {out / QUALITY_PAGE}")
    counts, existing = report.counts, report.num_existing_shards
    failed = f", {counts.failed:,} failed ({out / FAILED_FILE})" if counts.failed else ""
    print(
        f"wrote {out}: {format_count(counts.done + counts.empty, 'image')} in"
        f" {format_count(report.num_shards, 'shard')}{f' ({existing:,} existed)' if existing else ''},"
        f" {counts.empty:,} without {content}{failed}, {report.num_bytes / 1e6:.1f} MB"
    )
