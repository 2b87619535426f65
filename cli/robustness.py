"""`c2fmae eval robustness …`: test classifiers on images whose distribution differs from that of the training data."""

from functools import partial
from shlex import quote
from typing import Annotated

import typer
from c2fmae_cli.eval_run import (
    EmaOption,
    LimitOption,
    RecomputeOption,
    ResultsDirOption,
    SetOption,
    StepOption,
    open_models,
    run_and_print,
    update_run_reports,
)

from c2fmae.core.errors import UserError
from c2fmae.core.text import slugify

SUITE_OPTIONS = (
    "imagenet-a",
    "imagenet-r",
    "sketch",
    "imagenet-c",
    "imagenet-v2",
    "imagenet-real",
    "imagenet-w",
    "imagenet-val",
)
"""Suites that have an option. Sets of others, such as those of plug-ins, are given by `--set sets=[…]`."""

OfficialSetOption = Annotated[str | None, typer.Option(metavar="DIR", help="A folder, or the official tar.")]


def robustness(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL", help="Fine-tuned runs, timm:NAME, timm:NAME@FILE, or folders saved by timm."),
    ],
    imagenet_a: OfficialSetOption = None,
    imagenet_r: OfficialSetOption = None,
    sketch: Annotated[str | None, typer.Option(metavar="DIR", help="ImageNet-Sketch: a folder, or the tar.")] = None,
    imagenet_c: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="CORRUPTION/SEVERITY/CLASS/…, or tars of it, with ImageNet's classes."),
    ] = None,
    imagenet_v2: OfficialSetOption = None,
    imagenet_real: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="ImageNet's validation images, with the labels of ImageNet-ReaL."),
    ] = None,
    imagenet_w: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="ImageNet's validation images, to which the watermark is added."),
    ] = None,
    imagenet_val: Annotated[
        str | None, typer.Option(metavar="DIR", help="ImageNet's validation images, for clean accuracy and the drop.")
    ] = None,
    clean: Annotated[
        str | None, typer.Option(metavar="DIR", help="Clean images of your own, instead of --imagenet-val.")
    ] = None,
    custom: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=DIR", help="A shifted set of your own, or one made by `data corrupt`; repeatable."),
    ] = None,
    limit: LimitOption = None,
    out: ResultsDirOption = None,
    recompute: RecomputeOption = False,
    step: StepOption = None,
    use_ema: EmaOption = False,
    set_: SetOption = None,
) -> None:
    """Test classifiers on shifted images, and compare them in one table."""
    from c2fmae.eval.robustness.config import RobustnessEvaluation

    official = {
        "imagenet-a": imagenet_a,
        "imagenet-r": imagenet_r,
        "sketch": sketch,
        "imagenet-c": imagenet_c,
        "imagenet-v2": imagenet_v2,
        "imagenet-real": imagenet_real,
        "imagenet-w": imagenet_w,
    }
    sets = [{"suite": suite, "source": source} for suite, source in official.items() if source is not None]
    sets += [{"name": name, "source": source} for name, source in map(_parse_named_dir, custom or [])]
    clean_set = _resolve_clean_set(imagenet_val, clean)
    values = {"sets": sets, "clean": clean_set, **RobustnessEvaluation.resolve_limit(limit)}
    config = RobustnessEvaluation.from_dict(values, set_ or [], source="eval robustness")
    if not config.sets and config.clean is None:
        raise UserError(
            f"eval robustness: no set is given. Use one or more of --{', --'.join(official)} and --custom NAME=DIR"
        )
    sources = list(dict.fromkeys(models))
    open_sources = partial(open_models, sources, out=out, is_nested=True, step=step, use_ema=use_ema)
    label = slugify("robustness", *config.set_labels())
    results, comparison = run_and_print("robustness", config, open_sources, out=out, label=label, recompute=recompute)
    if not results:
        return
    if out is None:
        update_run_reports(sources)
    hint = "" if len(sources) > 1 else f"; to compare with others: c2fmae eval robustness {quote(sources[0])} OTHER …"
    print(f"next: open {comparison[0]}{hint}")


def _parse_named_dir(text: str) -> tuple[str, str]:
    name, separator, source = text.partition("=")
    if not (separator and name and source):
        raise UserError(f"--custom {text}: expected NAME=DIR, as in --custom night=photos/night")
    return name, source


def _resolve_clean_set(imagenet_val: str | None, clean: str | None) -> dict[str, str] | None:
    if imagenet_val is not None and clean is not None:
        raise UserError("--imagenet-val, --clean: both give the clean images. Use one of them")
    if imagenet_val is not None:
        return {"suite": "imagenet-val", "source": imagenet_val}
    return None if clean is None else {"name": "clean", "source": clean}
