"""`c2fmae view …`: figures of masks, schedules, reconstructions, attention and features."""

from pathlib import Path
from shlex import quote
from typing import Annotated

import typer
from c2fmae_cli.options import (
    BackboneSourcesArgument,
    CheckpointStepOption,
    EmaOption,
    FigureDataOption,
    FigureOption,
    SetOption,
    command_with_settings,
)

view = typer.Typer(help="Draw figures of masks, models and features.", no_args_is_help=True)

SavedMasksOption = Annotated[
    Path | None, typer.Option("--masks", metavar="FILE", help="Draw masks that --save-masks or Masks.save wrote.")
]
SaveMasksOption = Annotated[
    Path | None,
    typer.Option("--save-masks", metavar="FILE", help="Write the policy's masks at one point of training to a file."),
]
ExplainOption = Annotated[
    bool, typer.Option("--explain", help="Print how many patches of each region are to be masked, and are masked.")
]
VisibleOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="GRANULARITY:AMOUNT",
        help="Visible patches: rgb:all, instance:40 or semantic:25%. Granularities that are not named are hidden. "
        "Repeatable.",
    ),
]


@view.command(cls=command_with_settings("c2fmae.views.config:MasksFigureConfig"))
def masks(
    data: FigureDataOption = "generated",
    out: FigureOption = Path("masks.png"),
    explain: ExplainOption = False,
    saved_masks: SavedMasksOption = None,
    save_to: SaveMasksOption = None,
    set_: SetOption = None,
) -> None:
    """Draw scenes, and what the semantic, instance, random and blended masks hide in them."""
    from c2fmae.core.errors import UserError
    from c2fmae.report.drawing import check_png_path, save_png
    from c2fmae.report.page import table_to_lines
    from c2fmae.views.config import MasksFigureConfig
    from c2fmae.views.masks import build_quota_table, draw_masks, draw_saved_masks, save_masks

    if saved_masks and save_to:
        raise UserError("--save-masks: cannot be combined with --masks. Leave one of them out")
    config = MasksFigureConfig.from_dict({"data": data}, set_ or [], source="view masks")
    check_png_path(out)
    if save_to:
        save_masks(config, save_to)
        print(f"wrote {save_to}")
    figure = draw_saved_masks(config, saved_masks) if saved_masks else draw_masks(config)
    print(f"wrote {save_png(figure.image, out)}")
    if explain:
        table = build_quota_table(figure.scenes, figure.samples)
        print("\n".join(["", table.caption, *table_to_lines(table), table.footnote, ""]))
    if save_to:
        settings = "".join(f" --set {quote(setting)}" for setting in set_ or [])
        print(f"next: c2fmae view masks --data {quote(data)} --masks {quote(str(save_to))}{settings}")
    else:
        print(f"next: c2fmae view schedule --data {quote(data)}")


@view.command(cls=command_with_settings("c2fmae.views.config:ScheduleFigureConfig"))
def schedule(
    data: FigureDataOption = "generated", out: FigureOption = Path("schedule.png"), set_: SetOption = None
) -> None:
    """Draw the coefficients of a masking curriculum, and the overlap of each blend with the base masks."""
    from c2fmae.report.drawing import check_png_path, save_png
    from c2fmae.views.config import ScheduleFigureConfig
    from c2fmae.views.schedule import draw_schedule

    config = ScheduleFigureConfig.from_dict({"data": data}, set_ or [], source="view schedule")
    check_png_path(out)
    print(f"wrote {save_png(draw_schedule(config), out)}")
    print(f"next: c2fmae view masks --data {quote(data)}")


@view.command(cls=command_with_settings("c2fmae.views.config:ReconstructionFigureConfig"))
def reconstruct(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A pre-training run, or one of its checkpoints.")],
    data: Annotated[
        str | None,
        typer.Option(help="A shard, a folder of scenes or shards, or `generated`; by default the held-out data."),
    ] = None,
    visible: VisibleOption = None,
    out: FigureOption = Path("reconstruct.png"),
    step: CheckpointStepOption = None,
    use_ema: EmaOption = False,
    set_: SetOption = None,
) -> None:
    """Draw scenes, the patches that a pre-trained model is given, and its predictions of the others.

    Without --visible, masks are sampled as at the end of training.
    """
    from c2fmae.loading import load_run, open_run_scenes
    from c2fmae.report.drawing import check_png_path, save_png
    from c2fmae.views.config import ReconstructionFigureConfig
    from c2fmae.views.reconstruction import (
        draw_reconstruction,
        parse_visible,
        sample_requested_masks,
        sample_training_masks,
        select_scenes,
    )
    from c2fmae.views.scenes import open_figure_scenes

    config = ReconstructionFigureConfig.from_dict({"data": data}, set_ or [], source="view reconstruct")
    amounts = parse_visible(visible or [])
    check_png_path(out)
    loaded = load_run(run, step=step, use_ema=use_ema)
    method = loaded.method
    if config.data is None:
        source = open_run_scenes(loaded.config)
    else:
        size = max(method.config.image_size)
        source = open_figure_scenes(config.data, size=size, seed=config.seed, models=[str(run)])
    scenes = select_scenes(method, source, config.scenes)
    if amounts:
        sampled = sample_requested_masks(method, scenes, amounts, seed=config.seed)
    else:
        sampled = sample_training_masks(method, scenes, seed=config.seed)
    name = f"{run}, step {loaded.step}"
    figure = draw_reconstruction(method, scenes, sampled, model_name=name, class_names=loaded.class_names)
    print(f"wrote {save_png(figure, out)}")
    other = "25%" if amounts and amounts != {"rgb": "25%"} else "all"
    print(f"next: c2fmae view reconstruct {quote(str(run))} --visible rgb:{other}")


@view.command(cls=command_with_settings("c2fmae.views.config:BackboneFigureConfig"))
def attention(
    sources: BackboneSourcesArgument,
    data: FigureDataOption = "generated",
    out: FigureOption = Path("attention.png"),
    set_: SetOption = None,
) -> None:
    """Draw the attention maps of backbones on the same images, and the percentage of attention on objects."""
    from c2fmae.models.backbones import load_backbone
    from c2fmae.report.drawing import check_png_path, save_png
    from c2fmae.views.attention import draw_attention
    from c2fmae.views.config import BackboneFigureConfig

    config = BackboneFigureConfig.from_dict({"data": data}, set_ or [], source="view attention")
    check_png_path(out)
    figure = draw_attention(config, [(source, load_backbone(source)) for source in sources])
    print(f"wrote {save_png(figure, out)}")
    print(f"next: c2fmae eval attention {' '.join(map(quote, sources))} --data {quote(data)}")


@view.command(cls=command_with_settings("c2fmae.views.config:BackboneFigureConfig"))
def pca(
    sources: BackboneSourcesArgument,
    data: FigureDataOption = "generated",
    out: FigureOption = Path("pca.png"),
    set_: SetOption = None,
) -> None:
    """Draw three principal components of the patch features of backbones as colours, on the same images."""
    from c2fmae.models.backbones import load_backbone
    from c2fmae.report.drawing import check_png_path, save_png
    from c2fmae.views.config import BackboneFigureConfig
    from c2fmae.views.pca import draw_pca

    config = BackboneFigureConfig.from_dict({"data": data}, set_ or [], source="view pca")
    check_png_path(out)
    figure = draw_pca(config, [(source, load_backbone(source)) for source in sources])
    print(f"wrote {save_png(figure, out)}")
    print(f"next: c2fmae eval representation {' '.join(map(quote, sources))} --data {quote(data)}")
