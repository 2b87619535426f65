"""`c2fmae predict …`: apply a classifier, a segmenter or a detector to images."""

from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer
from c2fmae_cli.options import CheckpointStepOption, EmaOption

if TYPE_CHECKING:
    from c2fmae.predict import PredictResult

_MAX_LISTED = 5


def predict(
    run: Annotated[
        str,
        typer.Argument(metavar="RUN", help="A run of `eval finetune`, `segment` or `detect`, or any other classifier."),
    ],
    images: Annotated[
        str, typer.Argument(metavar="IMAGES", help="A folder of images with any sub-folders, an image, or shards.")
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="A new directory, or one of this command, which is continued.")
    ],
    top_k: Annotated[
        int | None, typer.Option("--top-k", min=1, help="Classes for each image, of a classifier. Default: 5.")
    ] = None,
    save: Annotated[
        str | None,
        typer.Option(
            "--save",
            metavar="NAME,…",
            help="Files of a segmenter: maps (always), overlay. Of a detector: coco (always), yolo, overlay.",
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option("--threshold", min=0, max=1, help="Lowest score of the objects of a detector. Default: 0.5."),
    ] = None,
    as_scenes: Annotated[
        bool,
        typer.Option("--as-scenes", help="Write id maps and link the images beside them, so that DIR is a data set."),
    ] = False,
    step: CheckpointStepOption = None,
    use_ema: EmaOption = False,
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, help="Images, or windows of an image, in a forward pass.")
    ] = 16,
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=1, help="Processes that read images; by default one for each core, up to 16."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change a setting of the model's test, such as short_side=600.",
        ),
    ] = None,
) -> None:
    """Predict the classes of images or of their pixels, or the objects in them, and write them to a directory.

    The same command continues after an interruption, and predicts new images only. The exit code is 1 if some images
    cannot be read.
    """
    from c2fmae.core.cores import resolve_num_workers
    from c2fmae.core.distributed import init_distributed
    from c2fmae.eval.engine import BatchingConfig
    from c2fmae.predict import PredictOptions
    from c2fmae.predict import predict as write_predictions

    options = PredictOptions(
        top_k=top_k,
        save=tuple(name.strip() for name in save.split(",")) if save is not None else (),
        threshold=threshold,
        as_scenes=as_scenes,
        overrides=tuple(set_ or ()),
    )
    try:
        with init_distributed() as world:
            batching = BatchingConfig(batch_size=batch_size, num_workers=resolve_num_workers(workers))
            result = write_predictions(run, images, out, world, options, step=step, use_ema=use_ema, batching=batching)
    except KeyboardInterrupt:
        print(f"interrupted. Predictions so far are in {out}; run the same command again to continue", flush=True)
        raise
    _print_result(result, run, images, out, options.save, as_scenes)
    if result.unreadable:
        raise typer.Exit(1)


def _print_result(
    result: "PredictResult", run: str, images: str, out: Path, save: tuple[str, ...], as_scenes: bool
) -> None:
    from c2fmae.core.text import format_count
    from c2fmae.predict import UNREADABLE_FILE

    print(f"protocol: {result.protocol}")
    before = result.num_images - result.num_new
    done = f", {before:,} of them before" if before else ""
    print(f"predicted {format_count(result.num_images, 'image', 'images')}{done}")
    if result.unreadable:
        print(f"{format_count(len(result.unreadable), 'problem', 'problems')}, listed in {out / UNREADABLE_FILE}:")
        for message in result.unreadable[:_MAX_LISTED]:
            print(f"  {message}")
    if result.model_kind == "classifier":
        print(f"wrote {out / 'predictions.csv'}")
        print(f"next: c2fmae eval robustness {quote(run)} --custom NAME={quote(images)}  # if its folders are classes")
        return
    if result.model_kind == "segmenter":
        print(f"wrote {out / 'semantic'}: an id map for each image; {out / 'dataset.json'} names the classes")
    else:
        print(f"wrote {out / 'predictions.json'}: objects as COCO results; {out / 'images.json'} has the ids")
    if "yolo" in save:
        print(f"wrote {out / 'labels'}: objects in YOLO's format; {out / 'data.yaml'} names the classes")
    if "overlay" in save:
        legend = f"in the colours of {out / 'legend.png'}" if result.model_kind == "segmenter" else "with their objects"
        print(f"wrote {out / 'overlay'}: the images {legend}")
    if as_scenes:
        maps = "" if result.model_kind == "segmenter" else f"{out / 'semantic'}, {out / 'instance'}: id maps; "
        print(
            f"wrote {maps}{out / 'rgb'}: links to the images. dataset.json states maps_know_labels: false, since the"
            f" maps are predicted from images alone; set it to true if the {result.model_kind} was trained on these"
            " images"
        )
        print(f"next: c2fmae data preview {quote(str(out))}")
    elif result.model_kind == "segmenter":
        print("next: the same command with --as-scenes adds the images, for pre-training on them and their maps")
    elif "overlay" not in save:
        print("next: the same command with --save overlay draws the objects on the images")
