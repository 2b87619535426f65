"""`c2fmae view …`: pictures."""

from pathlib import Path
from shlex import quote
from typing import Annotated, Any

import typer

view = typer.Typer(help="Draw what the method does.", no_args_is_help=True)

ScenesOption = Annotated[str, typer.Option(help="A shard, a folder of scenes or shards, or `generated`.")]
FigureOption = Annotated[Path, typer.Option(help="The PNG to write.")]
VisibleOption = Annotated[
    list[str] | None,
    typer.Option(metavar="GRANULARITY:AMOUNT", help="What is seen: rgb:all, instance:40, semantic:25%; repeatable."),
]
BackbonesArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="SOURCE…", help="A run, a checkpoint, timm:NAME@FILE, an exported folder, an official file."
    ),
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one setting; repeatable.")
]


@view.command()
def masks(data: ScenesOption = "generated", out: FigureOption = Path("masks.png"), set_: SetOption = None) -> None:
    """Draw photo, maps, and what the semantic, instance, random and blended masks hide.

    Settings for --set: scenes, size, patch, seed, hidden, progress, masking.name, masking.options.curriculum.name,
    masking.options.blend, masking.options.object_share, …
    """
    from c2fmae.report.drawing import check_png_path, save_png
    from c2fmae.views.masks import MasksFigureConfig, draw_masks

    config = MasksFigureConfig.from_dict({"data": data}, set_ or [], source="view masks")
    check_png_path(out)
    print(f"wrote {save_png(draw_masks(config), out)}")
    print("next: c2fmae view schedule, which shows when each of the masks leads")


@view.command()
def schedule(
    data: ScenesOption = "generated", out: FigureOption = Path("schedule.png"), set_: SetOption = None
) -> None:
    """Draw a curriculum's coefficients, and what the three blends make of them.

    Settings for --set: scenes, size, patch, seed, hidden, points, masking.options.curriculum.name,
    masking.options.curriculum.options.order, masking.options.object_share, …
    """
    from c2fmae.report.drawing import check_png_path, save_png
    from c2fmae.views.schedule import ScheduleFigureConfig, draw_schedule

    config = ScheduleFigureConfig.from_dict({"data": data}, set_ or [], source="view schedule")
    check_png_path(out)
    print(f"wrote {save_png(draw_schedule(config), out)}")
    print("next: c2fmae view masks, which shows the masks on scenes")


@view.command()
def reconstruct(
    run: Annotated[Path, typer.Argument(help="A run's folder, or one of its checkpoints.")],
    data: Annotated[
        str | None, typer.Option(help="A shard, a folder of scenes or shards, or `generated`; else what was held out.")
    ] = None,
    visible: VisibleOption = None,
    out: FigureOption = Path("reconstruct.png"),
    set_: SetOption = None,
) -> None:
    """Draw scenes, what a trained model sees of them, and what it makes of the rest.

    Without --visible it sees as much as at the end of its training, and with it nothing of what is not named.

    Settings for --set: scenes, seed, step, average (of the weights, as training.ema keeps it).
    """
    from c2fmae.data import open_scenes
    from c2fmae.loading import load_run, open_run_scenes
    from c2fmae.report.drawing import check_png_path, save_png
    from c2fmae.views import reconstruction as drawing

    config = drawing.ReconstructionFigureConfig.from_dict({}, set_ or [], source="view reconstruct")
    visible_amounts = drawing.parse_visible(visible or [])
    check_png_path(out)
    loaded = load_run(run, step=config.step, use_ema=config.average)
    method, names = loaded.method, loaded.class_names
    options: dict[str, Any] = (
        {"size": max(method.config.image_size), "seed": config.seed} if data == "generated" else {}
    )
    source = open_run_scenes(loaded.config) if data is None else open_scenes(data, **options)
    scenes = drawing.select_scenes(method, source, config.scenes)
    if visible_amounts:
        masks = drawing.sample_requested_masks(method, scenes, visible_amounts, seed=config.seed)
    else:
        masks = drawing.sample_training_masks(method, scenes, seed=config.seed)
    name = f"{run}, step {loaded.step}"
    figure = drawing.draw_reconstruction(method, scenes, masks, model_name=name, class_names=names)
    print(f"wrote {save_png(figure, out)}")
    print(
        f"next: c2fmae view reconstruct {run} --visible rgb:{'25%' if visible_amounts else 'all'}, to see what a "
        "photo tells"
    )


@view.command()
def attention(
    sources: BackbonesArgument,
    data: ScenesOption = "generated",
    out: FigureOption = Path("attention.png"),
    set_: SetOption = None,
) -> None:
    """Draw where backbones look in the same photos, and how much of it falls on objects, against chance.

    Settings for --set: scenes, size (of all photos, as in [224, 224]), layer, seed.
    """
    from c2fmae.models.backbones import load_backbone
    from c2fmae.report.drawing import check_png_path, save_png
    from c2fmae.views.attention import AttentionFigureConfig, draw_attention

    config = AttentionFigureConfig.from_dict({"data": data}, set_ or [], source="view attention")
    check_png_path(out)
    figure = draw_attention(config, [(source, load_backbone(source)) for source in sources])
    print(f"wrote {save_png(figure, out)}")
    print(
        f"next: c2fmae eval attention {' '.join(map(quote, sources))} --data {quote(data)}, for numbers of many photos"
    )


@view.command()
def pca(
    sources: BackbonesArgument,
    data: ScenesOption = "generated",
    out: FigureOption = Path("pca.png"),
    set_: SetOption = None,
) -> None:
    """Draw what backbones tell apart in the same photos: three principal components of their patches as colours.

    Settings for --set: scenes, size (of all photos, as in [224, 224]), layer, seed.
    """
    from c2fmae.models.backbones import load_backbone
    from c2fmae.report.drawing import check_png_path, save_png
    from c2fmae.views.pca import PcaFigureConfig, draw_pca

    config = PcaFigureConfig.from_dict({"data": data}, set_ or [], source="view pca")
    check_png_path(out)
    figure = draw_pca(config, [(source, load_backbone(source)) for source in sources])
    print(f"wrote {save_png(figure, out)}")
    arguments = " ".join([*map(quote, sources), "--data", quote(data)])
    print(f"next: c2fmae eval representation {arguments}, for the rank of these features")
