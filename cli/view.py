"""`c2fmae view …`: pictures."""

from pathlib import Path
from shlex import quote
from typing import Annotated, Any

import typer

view = typer.Typer(help="Draw what the method does.", no_args_is_help=True)

Data = Annotated[str, typer.Option(help="A shard, a folder of scenes or shards, or `generated`.")]
Out = Annotated[Path, typer.Option(help="The PNG to write.")]
Visible = Annotated[
    list[str] | None,
    typer.Option(metavar="GRANULARITY:AMOUNT", help="What is seen: rgb:all, instance:40, semantic:25%; repeatable."),
]
Sources = Annotated[
    list[str],
    typer.Argument(
        metavar="SOURCE…", help="A run, a checkpoint, timm:NAME@FILE, an exported folder, an official file."
    ),
]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one setting; repeatable.")]


@view.command()
def masks(data: Data = "generated", out: Out = Path("masks.png"), set_: Set = None) -> None:
    """Draw photo, maps, and what the semantic, instance, random and blended masks hide.

    Settings for --set: scenes, size, patch, seed, hidden, progress, masking.policy, masking.curriculum.name,
    masking.blend, masking.object_share, …
    """
    from c2fmae.report.drawing import check_png, save_png
    from c2fmae.views.masks import MasksView, draw_masks

    config = MasksView.read({"data": data}, set_ or [], source="view masks")
    check_png(out)
    print(f"wrote {save_png(draw_masks(config), out)}")
    print("next: c2fmae view schedule, which shows when each of the masks leads")


@view.command()
def schedule(data: Data = "generated", out: Out = Path("schedule.png"), set_: Set = None) -> None:
    """Draw a curriculum's coefficients, and what the three blends make of them.

    Settings for --set: scenes, size, patch, seed, hidden, points, masking.curriculum.name,
    masking.curriculum.options.order, masking.object_share, …
    """
    from c2fmae.report.drawing import check_png, save_png
    from c2fmae.views.schedule import ScheduleView, draw_schedule

    config = ScheduleView.read({"data": data}, set_ or [], source="view schedule")
    check_png(out)
    print(f"wrote {save_png(draw_schedule(config), out)}")
    print("next: c2fmae view masks, which shows the masks on scenes")


@view.command()
def reconstruct(
    run: Annotated[Path, typer.Argument(help="A run's folder, or one of its checkpoints.")],
    data: Annotated[
        str | None, typer.Option(help="A shard, a folder of scenes or shards, or `generated`; else what was held out.")
    ] = None,
    visible: Visible = None,
    out: Out = Path("reconstruct.png"),
    set_: Set = None,
) -> None:
    """Draw scenes, what a trained model sees of them, and what it makes of the rest.

    Without --visible it sees as much as at the end of its training, and with it nothing of what is not named.

    Settings for --set: scenes, seed, step, average (of the weights, as training.ema keeps it).
    """
    from c2fmae.data import open_scenes
    from c2fmae.loading import held_out_scenes, load_run
    from c2fmae.report.drawing import check_png, save_png
    from c2fmae.views import reconstruction as drawing

    config = drawing.ReconstructView.read({}, set_ or [], source="view reconstruct")
    wanted = drawing.read_visible(visible or [])
    check_png(out)
    loaded = load_run(run, step=config.step, average=config.average)
    method, names = loaded.method, loaded.class_names
    options: dict[str, Any] = (
        {"size": max(method.config.image_size), "seed": config.seed} if data == "generated" else {}
    )
    source = held_out_scenes(loaded.config) if data is None else open_scenes(data, **options)
    scenes = drawing.take_scenes(method, source, config.scenes)
    if wanted:
        masks = drawing.masks_showing(method, scenes, wanted, seed=config.seed)
    else:
        masks = drawing.masks_like_training(method, scenes, seed=config.seed)
    name = f"{run}, step {loaded.step}"
    picture = drawing.draw_reconstruction(method, scenes, masks, model=name, class_names=names)
    print(f"wrote {save_png(picture, out)}")
    print(f"next: c2fmae view reconstruct {run} --visible rgb:{'25%' if wanted else 'all'}, to see what a photo tells")


@view.command()
def attention(sources: Sources, data: Data = "generated", out: Out = Path("attention.png"), set_: Set = None) -> None:
    """Draw where backbones look in the same photos, and how much of it falls on objects, against chance.

    Settings for --set: scenes, size (of all photos, as in [224, 224]), layer, seed.
    """
    from c2fmae.models.backbones import load_backbone
    from c2fmae.report.drawing import check_png, save_png
    from c2fmae.views.attention import AttentionView, draw_attention

    config = AttentionView.read({"data": data}, set_ or [], source="view attention")
    check_png(out)
    picture = draw_attention(config, [(source, load_backbone(source)) for source in sources])
    print(f"wrote {save_png(picture, out)}")
    print(
        f"next: c2fmae eval attention {' '.join(map(quote, sources))} --data {quote(data)}, for numbers of many photos"
    )


@view.command()
def pca(sources: Sources, data: Data = "generated", out: Out = Path("pca.png"), set_: Set = None) -> None:
    """Draw what backbones tell apart in the same photos: three principal components of their patches as colours.

    Settings for --set: scenes, size (of all photos, as in [224, 224]), layer, seed.
    """
    from c2fmae.models.backbones import load_backbone
    from c2fmae.report.drawing import check_png, save_png
    from c2fmae.views.pca import PcaView, draw_pca

    config = PcaView.read({"data": data}, set_ or [], source="view pca")
    check_png(out)
    picture = draw_pca(config, [(source, load_backbone(source)) for source in sources])
    print(f"wrote {save_png(picture, out)}")
    words = " ".join([*map(quote, sources), "--data", quote(data)])
    print(f"next: c2fmae eval representation {words}, for the rank of these features")
