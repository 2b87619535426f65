"""`c2fmae eval robustness …`: what is left of classifiers on photos of another kind than they learned from."""

from pathlib import Path
from shlex import quote
from typing import Annotated

import typer
from c2fmae_cli.pretrain import is_first
from c2fmae_cli.result_paths import home, slug, tell_runs

SETTINGS = "batch_size, workers, precision, keep_probabilities, reference"

Place = Annotated[str | None, typer.Option(metavar="DIR", help="A folder, or the official tar.")]


def robustness(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL", help="Fine-tuned runs, timm:NAME, timm:NAME@FILE, folders as timm saves them."),
    ],
    imagenet_a: Place = None,
    imagenet_r: Place = None,
    sketch: Annotated[str | None, typer.Option(metavar="DIR", help="ImageNet-Sketch: a folder, or the tar.")] = None,
    imagenet_c: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="CORRUPTION/SEVERITY/CLASS/…, or tars of it; of ImageNet's classes."),
    ] = None,
    imagenet_val: Annotated[
        str | None, typer.Option(metavar="DIR", help="ImageNet's validation photos, for clean accuracy and the drop.")
    ] = None,
    clean: Annotated[
        str | None, typer.Option(metavar="DIR", help="The same, where the photos without a shift are your own.")
    ] = None,
    custom: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=DIR", help="A shifted set of your own, one made by `data corrupt`, too; repeatable."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where results go; RUN/evaluations/… and evaluations/… unless given.")
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Ask anew what was answered before.")] = False,
    step: Annotated[int | None, typer.Option(help="Take a run's checkpoint of this step.")] = None,
    average: Annotated[bool, typer.Option("--average", help="Take a run's averaged weights.")] = False,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help=f"Change one setting; repeatable. {SETTINGS}."),
    ] = None,
) -> None:
    """Try classifiers on shifted photos: ImageNet-A, -R, -Sketch and -C, or sets of your own; all in one table."""
    from c2fmae.core.distributed import join_world
    from c2fmae.data.suites.shifted_set import open_shifted
    from c2fmae.eval.robustness.evaluation import RobustnessConfig, evaluate_robustness
    from c2fmae.eval.robustness.image_classifier import Entrant, load_entrant
    from c2fmae.eval.robustness.result_files import CSV, JSON, default_folder, protocol_of, write_all, write_model
    from c2fmae.eval.robustness.tables import notes, numbers_table
    from c2fmae.report.page import as_lines

    config = RobustnessConfig.read({}, set_ or [], source="eval robustness")
    official = {"imagenet-a": imagenet_a, "imagenet-r": imagenet_r, "sketch": sketch, "imagenet-c": imagenet_c}
    asked: list[tuple[str, str, str | None]] = [
        (kind, place, None) for kind, place in official.items() if place is not None
    ]
    asked += [("custom", place, name) for name, place in map(_named, custom or [])]
    unshifted = _clean(imagenet_val, clean)
    _check(asked, has_clean=unshifted is not None)
    sources = list(dict.fromkeys(models))

    def home_of(source: str) -> Path:
        return home(source, None if out is None else out / slug(source))

    def folder_of(entrant: Entrant) -> Path:
        return home_of(entrant.source) / "predictions"

    with join_world() as world:
        reference = None if unshifted is None else open_shifted(*unshifted)
        sets = [open_shifted(*each) for each in asked]
        entrants = [load_entrant(source, step=step, average=average) for source in sources]
        try:
            found = evaluate_robustness(entrants, sets, reference, config, folder_of, world, again=again)
        except KeyboardInterrupt:
            if world.is_first:
                kept = ", ".join(str(folder_of(entrant)) for entrant in entrants)
                print(f"stopped. Cells that were answered whole are kept in {kept}; run again to go on", flush=True)
            raise
    if not is_first():
        return
    identities = {each.name: each.identity for each in [*([reference] if reference is not None else []), *sets]}
    results = [write_model(each, identities, config, home_of(each.entrant.source)) for each in found]
    folder = out if out is not None else default_folder(found, identities, config)
    write_all(found, identities, config, folder)
    print("\n".join([*as_lines(numbers_table(found)), *notes(found)]))
    for protocol in dict.fromkeys(map(protocol_of, found)):
        of = [each.entrant.source for each in found if protocol_of(each) == protocol]
        whose = "" if len(of) == len(found) else f" of {', '.join(of)}"
        print(f"protocol{whose}: {protocol}")
    for path in (*(result.folder / "results.json" for result in results), folder / JSON, folder / CSV):
        print(f"wrote {path}")
    if out is None:
        tell_runs(sources)
    more = (
        "" if len(sources) > 1 else f", or c2fmae eval robustness {quote(sources[0])} ANOTHER … for both in one table"
    )
    print(f"next: open {folder / 'report.html'}, which draws it{more}")


def _named(text: str) -> tuple[str, str]:
    from c2fmae.core.errors import UserError

    name, is_named, place = text.partition("=")
    if not (is_named and name and place):
        raise UserError(f"--custom {text}: expected NAME=DIR, as in --custom night=photos/night")
    return name, place


def _clean(imagenet_val: str | None, clean: str | None) -> tuple[str, str, str | None] | None:
    from c2fmae.core.errors import UserError

    if imagenet_val is not None and clean is not None:
        raise UserError("--imagenet-val and --clean both name the photos without a shift. Give one of them")
    if imagenet_val is not None:
        return "imagenet-val", imagenet_val, None
    return None if clean is None else ("custom", clean, "clean")


def _check(asked: list[tuple[str, str, str | None]], *, has_clean: bool) -> None:
    from c2fmae.core.errors import UserError

    if not asked and not has_clean:
        raise UserError(
            "no set is given. Give one or more of --imagenet-a, -r, --sketch, --imagenet-c, --custom NAME=DIR"
        )
    names = [name or kind for kind, _, name in asked] + (["clean"] if has_clean else [])
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"--custom {twice}: two sets are called {twice!r}. Give one of them another name")
