"""`c2fmae eval robustness …`: what is left of classifiers on photos of another kind than they learned from."""

from pathlib import Path
from shlex import quote
from typing import Annotated

import typer
from c2fmae_cli.pretrain import is_main_process
from c2fmae_cli.result_paths import results_dir, slugify, update_run_reports

ROBUSTNESS_SET_KEYS = "batch_size, workers, precision, keep_probabilities, reference"

OfficialSetOption = Annotated[str | None, typer.Option(metavar="DIR", help="A folder, or the official tar.")]


def robustness(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL", help="Fine-tuned runs, timm:NAME, timm:NAME@FILE, folders as timm saves them."),
    ],
    imagenet_a: OfficialSetOption = None,
    imagenet_r: OfficialSetOption = None,
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
    recompute: Annotated[bool, typer.Option("--again", help="Ask anew what was answered before.")] = False,
    step: Annotated[int | None, typer.Option(help="Take a run's checkpoint of this step.")] = None,
    use_ema: Annotated[bool, typer.Option("--average", help="Take a run's averaged weights.")] = False,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help=f"Change one setting; repeatable. {ROBUSTNESS_SET_KEYS}."),
    ] = None,
) -> None:
    """Try classifiers on shifted photos: ImageNet-A, -R, -Sketch and -C, or sets of your own; all in one table."""
    from c2fmae.core.distributed import init_distributed
    from c2fmae.data.suites import open_shifted_set
    from c2fmae.eval.results import collect_notes, make_metrics_table
    from c2fmae.eval.robustness.evaluation import RobustnessConfig, evaluate_robustness
    from c2fmae.eval.robustness.image_classifier import ImageClassifier, load_image_classifier
    from c2fmae.eval.robustness.result_files import (
        CSV_FILE,
        JSON_FILE,
        default_output_dir,
        describe_robustness_protocol,
        write_comparison,
        write_model_result,
    )
    from c2fmae.report.page import table_to_lines

    config = RobustnessConfig.from_dict({}, set_ or [], source="eval robustness")
    official = {"imagenet-a": imagenet_a, "imagenet-r": imagenet_r, "sketch": sketch, "imagenet-c": imagenet_c}
    requested: list[tuple[str, str, str | None]] = [
        (kind, place, None) for kind, place in official.items() if place is not None
    ]
    requested += [("custom", place, name) for name, place in map(_parse_named_dir, custom or [])]
    clean_set = _resolve_clean_set(imagenet_val, clean)
    _check_requested_sets(requested, has_clean=clean_set is not None)
    sources = list(dict.fromkeys(models))

    def model_results_dir(source: str) -> Path:
        return results_dir(source, None if out is None else out / slugify(source))

    def predictions_dir(model: ImageClassifier) -> Path:
        return model_results_dir(model.source) / "predictions"

    with init_distributed() as world:
        reference = None if clean_set is None else open_shifted_set(*clean_set)
        sets = [open_shifted_set(*each) for each in requested]
        classifiers = [load_image_classifier(source, step=step, use_ema=use_ema) for source in sources]
        try:
            results_by_model = evaluate_robustness(
                classifiers, sets, reference, config, predictions_dir, world, again=recompute
            )
        except KeyboardInterrupt:
            if world.is_main:
                prediction_dirs = ", ".join(str(predictions_dir(entrant)) for entrant in classifiers)
                print(
                    f"stopped. Cells that were answered whole are kept in {prediction_dirs}; run again to go on",
                    flush=True,
                )
            raise
    if not is_main_process():
        return
    identities = {each.name: each.identity for each in [*([reference] if reference is not None else []), *sets]}
    results = [
        write_model_result(each, identities, config, model_results_dir(each.classifier.source))
        for each in results_by_model
    ]
    folder = out if out is not None else default_output_dir(results_by_model, identities, config)
    write_comparison(results_by_model, identities, config, folder)
    columns = [(each.classifier.source, each.metrics) for each in results_by_model]
    table = make_metrics_table("Robustness", columns)
    print("\n".join([*table_to_lines(table), *collect_notes(columns)]))
    for protocol in dict.fromkeys(map(describe_robustness_protocol, results_by_model)):
        model_sources = [
            each.classifier.source for each in results_by_model if describe_robustness_protocol(each) == protocol
        ]
        suffix = "" if len(model_sources) == len(results_by_model) else f" of {', '.join(model_sources)}"
        print(f"protocol{suffix}: {protocol}")
    for path in (*(result.result_dir / "results.json" for result in results), folder / JSON_FILE, folder / CSV_FILE):
        print(f"wrote {path}")
    if out is None:
        update_run_reports(sources)
    comparison_hint = (
        "" if len(sources) > 1 else f", or c2fmae eval robustness {quote(sources[0])} ANOTHER … for both in one table"
    )
    print(f"next: open {folder / 'report.html'}, which draws it{comparison_hint}")


def _parse_named_dir(text: str) -> tuple[str, str]:
    from c2fmae.core.errors import UserError

    name, is_named, place = text.partition("=")
    if not (is_named and name and place):
        raise UserError(f"--custom {text}: expected NAME=DIR, as in --custom night=photos/night")
    return name, place


def _resolve_clean_set(imagenet_val: str | None, clean: str | None) -> tuple[str, str, str | None] | None:
    from c2fmae.core.errors import UserError

    if imagenet_val is not None and clean is not None:
        raise UserError("--imagenet-val and --clean both name the photos without a shift. Give one of them")
    if imagenet_val is not None:
        return "imagenet-val", imagenet_val, None
    return None if clean is None else ("custom", clean, "clean")


def _check_requested_sets(requested: list[tuple[str, str, str | None]], *, has_clean: bool) -> None:
    from c2fmae.core.errors import UserError

    if not requested and not has_clean:
        raise UserError(
            "no set is given. Give one or more of --imagenet-a, -r, --sketch, --imagenet-c, --custom NAME=DIR"
        )
    names = [name or kind for kind, _, name in requested] + (["clean"] if has_clean else [])
    if duplicate := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"--custom {duplicate}: two sets are called {duplicate!r}. Give one of them another name")
