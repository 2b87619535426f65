"""`c2fmae eval …`: what backbones are good for, each number with its protocol."""

from collections.abc import Callable, Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core
from c2fmae_cli.finetune import finetune
from c2fmae_cli.pretrain import is_first
from c2fmae_cli.result_paths import home as home_of
from c2fmae_cli.result_paths import slug, tell_runs
from c2fmae_cli.robustness import robustness

if TYPE_CHECKING:
    from c2fmae.eval.results import Result

Sources = Annotated[
    list[str],
    typer.Argument(metavar="SOURCE", help="A run, a checkpoint, timm:NAME@FILE, an exported folder, an official file."),
]
Data = Annotated[
    str | None,
    typer.Option(
        help="Scenes: a folder of a training and a test set (or with --test the training set), or `generated`."
    ),
]
Test = Annotated[str | None, typer.Option(help="The test set, where --data does not hold it.")]
Out = Annotated[Path | None, typer.Option(help="Where results go; RUN/evaluations/… or evaluations/… unless given.")]
Untrained = Annotated[bool, typer.Option("--untrained", help="Evaluate the first source's ViT with new weights, too.")]
Again = Annotated[bool, typer.Option("--again", help="Compute anew what was computed before.")]
Missing = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-missing", metavar="NAME", help="Tensors that may be missing, by name or pattern; repeatable."
    ),
]
Step = Annotated[int | None, typer.Option(help="Take a run's checkpoint of this step.")]
Average = Annotated[bool, typer.Option("--average", help="Take a run's averaged weights.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one setting; repeatable.")]

HELP = {
    "knn": "Ask the nearest neighbours of frozen features which class a photo is of.",
    "linear": "Ask a linear classifier of frozen features which class a photo is of.",
    "attentive": "Ask a classifier that attends to frozen tokens which class a photo is of.",
    "dense": "Ask a linear classifier of frozen patches which class every place shows: mIoU.",
    "attention": "Measure how much of the attention falls on objects, layer by layer.",
    "representation": "Measure how far attention reaches, what it depends on, and the rank of features.",
}

_PAIR = "options, test_options, image_size, crop, layers, precision, batch_size, workers, seed"
_SWEEP = "lrs, weight_decays, epochs, head_batch_size"
_SAMPLED = "options, images, image_size, batch_size"
SETTINGS = {
    "knn": f"ks, temperature, fractions, seeds, pools, {_PAIR}",
    "linear": f"variant, {_SWEEP}, fractions, seeds, pools, {_PAIR}",
    "attentive": f"num_queries, narrowing, lr, weight_decay, epochs, head_batch_size, fractions, seeds, {_PAIR}",
    "dense": f"{_SWEEP}, max_patches, {_PAIR}",
    "attention": _SAMPLED,
    "representation": _SAMPLED,
}
"""What --set reaches."""


class _Evaluations(typer.core.TyperGroup):
    """The evaluations that we know by heart, so that --help answers at once; others, of plug-ins, when asked for."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command, that of a registered evaluation too."""
        command = super().get_command(ctx, cmd_name)
        if command is None:
            from c2fmae.eval.builtin import EVALUATIONS

            summary = EVALUATIONS.describe(cmd_name)  # an unknown name is answered with the nearest
            command = typer.main.get_command(_app_of({cmd_name: summary}))
        return command


eval_ = typer.Typer(cls=_Evaluations, help="Measure what a backbone is good for.", no_args_is_help=True)


def _command(name: str) -> Callable[..., None]:
    def run(
        sources: Sources,
        data: Data = None,
        test: Test = None,
        out: Out = None,
        untrained: Untrained = False,
        again: Again = False,
        allow_missing: Missing = None,
        step: Step = None,
        average: Average = False,
        set_: Set = None,
    ) -> None:
        loading = {"allow_missing": tuple(allow_missing or ()), "step": step, "average": average}
        _evaluate(name, sources, data, test, out, untrained, again, loading, list(set_ or []))

    return run


def _app_of(commands: dict[str, str]) -> typer.Typer:
    app = typer.Typer()
    for name, summary in commands.items():
        app.command(name, help=summary)(_command(name))
    return app


for _name, _summary in HELP.items():
    eval_.command(_name, help=f"{_summary}\n\nSettings for --set: {SETTINGS[_name]}.")(_command(_name))


@eval_.command()
def cost(
    sources: Annotated[list[str], typer.Argument(metavar="SOURCE", help="Runs, recipes, or any other backbone.")],
    out: Out = None,
    allow_missing: Missing = None,
    set_: Set = None,
) -> None:
    """Count parameters, operations and activations, measure the speed, and price an epoch of pre-training by MAE's.

    The price is that of runs and recipes. Settings for --set: image_size, batch_size, rounds, precisions.
    """
    from c2fmae.core.config import read_yaml
    from c2fmae.core.distributed import alone
    from c2fmae.eval.cost import CostEvaluation, backbone_table, compare_backbones, epoch_table, relative_to_mae
    from c2fmae.eval.cost.evaluation import machine
    from c2fmae.eval.evaluation import Subject
    from c2fmae.eval.results import evaluate, place_of
    from c2fmae.methods import MethodConfig
    from c2fmae.models.backbones import load_backbone, untrained
    from c2fmae.recipes import RECIPES

    config, world = CostEvaluation.read({}, set_ or [], source="eval cost"), alone()
    backbones, methods = {}, {}
    for source in sources:
        run = Path(source) / "config.yaml"
        if _is_name(source):
            methods[source] = RECIPES.get(source)().method  # an unknown one is answered with the nearest
            backbones[source] = untrained(methods[source].backbone())
        else:
            backbones[source] = load_backbone(source, allow_missing=tuple(allow_missing or ()))
            if run.is_file():
                methods[source] = MethodConfig.read(read_yaml(run)["method"], source=str(run))
    found = compare_backbones(backbones, config, world)
    print(backbone_table(found))
    results = []
    for source, backbone in backbones.items():
        home = home_of(source, out if out is None or len(backbones) == 1 else out / slug(source))
        subject = Subject(source, backbone, home / "features", world)
        place = place_of(home, "cost", "cost", config, subject)
        results.append(evaluate("cost", config, subject, place, found=found[source]))
    _tell_protocols(results)
    if methods:
        print("\nan epoch of pre-training, beside MAE's with the same encoder and photos:")
        where = f"{machine(world.device)}, bf16, {config.batch_size} images a step"
        costs = relative_to_mae(methods, device=world.device, batch_size=config.batch_size, rounds=config.rounds)
        print(epoch_table(costs, where))
    for result in results:
        print(f"wrote {result.folder / 'results.json'}")
    print(f"next: c2fmae describe {next(iter(methods), 'c2fmae-b')}, which shows where a method's operations go")


eval_.command()(finetune)
eval_.command()(robustness)


def _evaluate(
    name: str,
    sources: list[str],
    data: str | None,
    test: str | None,
    out: Path | None,
    is_untrained_too: bool,
    again: bool,
    loading: dict[str, Any],
    overrides: list[str],
) -> None:
    from datetime import timedelta

    from c2fmae.core.distributed import join_world
    from c2fmae.eval.builtin import EVALUATIONS
    from c2fmae.eval.evaluation import Subject
    from c2fmae.eval.results import evaluate, place_of, table_of
    from c2fmae.models.backbones import load_backbone, untrained
    from c2fmae.report.page import as_lines

    kind = EVALUATIONS.get(name)
    config = kind.read(kind.places(data, test), overrides, source=f"eval {name}")
    with join_world(patience=timedelta(days=7)) as world:  # the first process fits while the others wait
        results = []
        for source in sources:
            backbone = load_backbone(source, **loading)
            home = home_of(source, out if out is None or len(sources) == 1 else out / slug(source))
            subjects = {slug(name, data or ""): Subject(source, backbone, home / "features", world)}
            if is_untrained_too and source == sources[0]:
                fresh = Subject(f"untrained {source}", untrained(backbone.spec), home / "features", world)
                subjects[slug(name, data or "", "untrained")] = fresh
            for label, subject in subjects.items():
                place = place_of(home, label, name, config, subject)
                try:
                    results.append(evaluate(name, config, subject, place, again=again))
                except KeyboardInterrupt:
                    if world.is_first:
                        print(f"stopped. What was computed is kept in {subject.cache}; run again to go on", flush=True)
                    raise
    if not is_first():
        return
    table = table_of(results)
    print("\n".join([*as_lines(table), *([table.note] if table.note else [])]))
    _tell_protocols(results)
    for result in results:
        print(f"{'wrote' if result.is_new else 'was there already, computed before:'} {result.folder / 'results.json'}")
    if out is None:
        tell_runs(sources)
    print(f"next: open {results[0].folder / 'report.html'}, or c2fmae view pca {' '.join(map(quote, sources))}")


def _tell_protocols(results: "Sequence[Result]") -> None:
    """Print every protocol, with the sources that it is of where there are several."""
    protocols = dict.fromkeys(result.protocol for result in results)
    for protocol in protocols:
        of = [result.source for result in results if result.protocol == protocol]
        whose = f" of {', '.join(of)}" if len(protocols) > 1 else ""
        print(f"protocol{whose}: {protocol}")


def _is_name(source: str) -> bool:
    """Return whether a source can only be meant as a recipe's name."""
    return not Path(source).exists() and not any(sign in source for sign in "/:@.")
