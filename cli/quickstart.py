"""`c2fmae quickstart`: everything once, in a few minutes on a CPU."""

from pathlib import Path
from typing import Annotated

import typer

SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one setting; repeatable.")
]


def quickstart(
    out: Annotated[Path, typer.Option(help="The run's folder; one that is there already is gone on with.")] = Path(
        "quickstart"
    ),
    set_: SetOption = None,
) -> None:
    """Draw scenes, pre-train on them, probe what was learned, and make a page of it: a few minutes on a CPU."""
    from c2fmae.quickstart import quickstart as run
    from c2fmae.recipes.config import load_recipe

    outcome = run(load_recipe("c2fmae-tiny", set_ or []), out)
    if outcome.status != "finished":
        print(f"{outcome.status} at step {outcome.step}: {out}\nnext: c2fmae quickstart --out {out}")
        raise typer.Exit(outcome.exit_code)
    print(f"open {out / 'report.html'}: curves, pictures, and how its features compare")
    print(f"next: c2fmae view reconstruct {out} --visible rgb:50%")
    print("      c2fmae pretrain c2fmae-tiny --data SCENES, photos with maps; or mae-tiny, photos alone")
