"""`c2fmae view …`: pictures."""

from pathlib import Path
from typing import Annotated

import typer

view = typer.Typer(help="Draw what the method does.", no_args_is_help=True)

Data = Annotated[str, typer.Option(help="A shard, a folder of scenes or shards, or `generated`.")]
Out = Annotated[Path, typer.Option(help="The PNG to write.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one setting; repeatable.")]


@view.command()
def masks(data: Data = "generated", out: Out = Path("masks.png"), set_: Set = None) -> None:
    """Draw photo, maps, and what the semantic, instance, random and blended masks hide.

    Settings for --set: scenes, size, patch, seed, hidden, progress, masking.policy, masking.curriculum.name,
    masking.blend, masking.object_share, …
    """
    from c2fmae.core.pictures import check_png, save_png
    from c2fmae.eval.views.masks import MasksView, draw_masks

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
    from c2fmae.core.pictures import check_png, save_png
    from c2fmae.eval.views.schedule import ScheduleView, draw_schedule

    config = ScheduleView.read({"data": data}, set_ or [], source="view schedule")
    check_png(out)
    print(f"wrote {save_png(draw_schedule(config), out)}")
    print("next: c2fmae view masks, which shows the masks on scenes")
