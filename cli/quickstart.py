"""`c2fmae quickstart`: pre-train, evaluate and draw in a few minutes on a CPU."""

from pathlib import Path
from shlex import quote
from typing import Annotated

import typer
from c2fmae_cli.options import SetOption


def quickstart(
    out: Annotated[Path, typer.Option(help="The run directory; an existing run is resumed.")] = Path("quickstart"),
    set_: SetOption = None,
) -> None:
    """Pre-train on generated scenes, evaluate the features, and write a report page: a few minutes on a CPU."""
    from c2fmae.quickstart import quickstart as run
    from c2fmae.recipes.config import load_recipe

    outcome = run(load_recipe("c2fmae-tiny", set_ or []), out)
    path = quote(str(out))
    if outcome.status != "finished":
        print(f"{outcome.status} at step {outcome.step}: {out}\nnext: c2fmae quickstart --out {path}")
        raise typer.Exit(outcome.exit_code)
    print(f"wrote {out / 'report.html'}: losses, reconstructions, and the features beside baselines")
    print(f"next: c2fmae view reconstruct {path} --visible rgb:50%")
    print("      c2fmae pretrain c2fmae-tiny --data SCENES  # images with maps")
    print("      c2fmae pretrain mae-tiny --data IMAGES  # images without maps")
