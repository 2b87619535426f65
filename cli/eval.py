"""`c2fmae eval …`: what backbones are good for, each number with its protocol."""

from collections.abc import Callable, Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core
from c2fmae_cli.finetune import finetune
from c2fmae_cli.pretrain import is_main_process
from c2fmae_cli.result_paths import results_dir as home_of
from c2fmae_cli.result_paths import slugify, update_run_reports
from c2fmae_cli.robustness import robustness

if TYPE_CHECKING:
    from c2fmae.eval.results import EvaluationResult

BackbonesArgument = Annotated[
    list[str],
    typer.Argument(metavar="SOURCE", help="A run, a checkpoint, timm:NAME@FILE, an exported folder, an official file."),
]
TrainTestDataOption = Annotated[
    str | None,
    typer.Option(
        help="Scenes: a folder of a training and a test set (or with --test the training set), or `generated`."
    ),
]
TestSetOption = Annotated[str | None, typer.Option(help="The test set, where --data does not hold it.")]
ResultsDirOption = Annotated[
    Path | None, typer.Option(help="Where results go; RUN/evaluations/… or evaluations/… unless given.")
]
UntrainedOption = Annotated[
    bool, typer.Option("--untrained", help="Evaluate the first source's ViT with new weights, too.")
]
RecomputeOption = Annotated[bool, typer.Option("--again", help="Compute anew what was computed before.")]
AllowMissingOption = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-missing", metavar="NAME", help="Tensors that may be missing, by name or pattern; repeatable."
    ),
]
StepOption = Annotated[int | None, typer.Option(help="Take a run's checkpoint of this step.")]
EmaOption = Annotated[bool, typer.Option("--average", help="Take a run's averaged weights.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one setting; repeatable.")
]

EVALUATION_SUMMARIES = {
    "knn": "Ask the nearest neighbours of frozen features which class a photo is of.",
    "linear": "Ask a linear classifier of frozen features which class a photo is of.",
    "attentive": "Ask a classifier that attends to frozen tokens which class a photo is of.",
    "dense": "Ask a linear classifier of frozen patches which class every place shows: mIoU.",
    "attention": "Measure how much of the attention falls on objects, layer by layer.",
    "representation": "Measure how far attention reaches, what it depends on, and the rank of features.",
}

_TRAIN_TEST_KEYS = "train, test, image_size, crop, layers, precision, batch_size, workers, seed"
_SWEEP_KEYS = "lrs, weight_decays, epochs, head_batch_size"
_SAMPLED_KEYS = "data, images, image_size, batch_size"
SET_KEYS = {
    "knn": f"ks, temperature, fractions, seeds, pools, {_TRAIN_TEST_KEYS}",
    "linear": f"variant, {_SWEEP_KEYS}, fractions, seeds, pools, {_TRAIN_TEST_KEYS}",
    "attentive": (
        f"num_queries, narrowing, lr, weight_decay, epochs, head_batch_size, fractions, seeds, {_TRAIN_TEST_KEYS}"
    ),
    "dense": f"{_SWEEP_KEYS}, max_patches, {_TRAIN_TEST_KEYS}",
    "attention": _SAMPLED_KEYS,
    "representation": _SAMPLED_KEYS,
}
"""What --set reaches."""


class _EvaluationGroup(typer.core.TyperGroup):
    """The evaluations that we know by heart, so that --help answers at once; others, of plug-ins, when asked for."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command, that of a registered evaluation too."""
        command = super().get_command(ctx, cmd_name)
        if command is None:
            from c2fmae.eval.builtin import EVALUATIONS

            summary = EVALUATIONS.describe(cmd_name)  # an unknown name is answered with the nearest
            command = typer.main.get_command(_make_app({cmd_name: summary}))
        return command


eval_ = typer.Typer(cls=_EvaluationGroup, help="Measure what a backbone is good for.", no_args_is_help=True)


def _make_command(name: str) -> Callable[..., None]:
    def run(
        sources: BackbonesArgument,
        data: TrainTestDataOption = None,
        test: TestSetOption = None,
        out: ResultsDirOption = None,
        untrained: UntrainedOption = False,
        recompute: RecomputeOption = False,
        allow_missing: AllowMissingOption = None,
        step: StepOption = None,
        use_ema: EmaOption = False,
        set_: SetOption = None,
    ) -> None:
        loading = {"allow_missing": tuple(allow_missing or ()), "step": step, "use_ema": use_ema}
        _run_evaluation(name, sources, data, test, out, untrained, recompute, loading, list(set_ or []))

    return run


def _make_app(commands: dict[str, str]) -> typer.Typer:
    app = typer.Typer()
    for name, summary in commands.items():
        app.command(name, help=summary)(_make_command(name))
    return app


for _name, _summary in EVALUATION_SUMMARIES.items():
    eval_.command(_name, help=f"{_summary}\n\nSettings for --set: {SET_KEYS[_name]}.")(_make_command(_name))


@eval_.command()
def cost(
    sources: Annotated[list[str], typer.Argument(metavar="SOURCE", help="Runs, recipes, or any other backbone.")],
    out: ResultsDirOption = None,
    allow_missing: AllowMissingOption = None,
    set_: SetOption = None,
) -> None:
    """Count parameters, operations and activations, measure the speed, and price an epoch of pre-training by MAE's.

    The price is that of runs and recipes. Settings for --set: image_size, batch_size, rounds, precisions.
    """
    from c2fmae.config.method import MethodConfig
    from c2fmae.core.config import read_yaml
    from c2fmae.core.distributed import single_process
    from c2fmae.eval.cost import (
        CostEvaluation,
        format_backbone_costs,
        format_epoch_costs,
        measure_backbones,
        measure_epoch_costs,
    )
    from c2fmae.eval.cost.evaluation import describe_machine
    from c2fmae.eval.evaluation import ModelUnderTest
    from c2fmae.eval.results import make_result_dir, run_evaluation
    from c2fmae.models.backbones import create_untrained_backbone, load_backbone
    from c2fmae.recipes import RECIPES

    config, world = CostEvaluation.from_dict({}, set_ or [], source="eval cost"), single_process()
    backbones, methods = {}, {}
    for source in sources:
        config_path = Path(source) / "config.yaml"
        if _is_recipe_name(source):
            methods[source] = RECIPES.get(source)().method  # an unknown one is answered with the nearest
            backbones[source] = create_untrained_backbone(methods[source].backbone_spec())
        else:
            backbones[source] = load_backbone(source, allow_missing=tuple(allow_missing or ()))
            if config_path.is_file():
                methods[source] = MethodConfig.from_dict(read_yaml(config_path)["method"], source=str(config_path))
    costs_by_source = measure_backbones(backbones, config, world)
    print(format_backbone_costs(costs_by_source))
    results = []
    for source, backbone in backbones.items():
        output_dir = home_of(source, out if out is None or len(backbones) == 1 else out / slugify(source))
        model = ModelUnderTest(source, backbone, output_dir / "features", world)
        result_dir = make_result_dir(output_dir, "cost", "cost", config, model)
        results.append(run_evaluation("cost", config, model, result_dir, measured=costs_by_source[source]))
    _print_protocols(results)
    if methods:
        print("\nan epoch of pre-training, beside MAE's with the same encoder and photos:")
        conditions = f"{describe_machine(world.device)}, bf16, {config.batch_size} images a step"
        costs = measure_epoch_costs(methods, device=world.device, batch_size=config.batch_size, rounds=config.rounds)
        print(format_epoch_costs(costs, conditions))
    for result in results:
        print(f"wrote {result.result_dir / 'results.json'}")
    print(f"next: c2fmae describe {next(iter(methods), 'c2fmae-b')}, which shows where a method's operations go")


eval_.command()(finetune)
eval_.command()(robustness)


def _run_evaluation(
    name: str,
    sources: list[str],
    data: str | None,
    test: str | None,
    out: Path | None,
    include_untrained: bool,
    recompute: bool,
    load_options: dict[str, Any],
    overrides: list[str],
) -> None:
    from datetime import timedelta

    from c2fmae.core.distributed import init_distributed
    from c2fmae.eval.builtin import EVALUATIONS
    from c2fmae.eval.evaluation import ModelUnderTest
    from c2fmae.eval.results import make_result_dir, make_results_table, run_evaluation
    from c2fmae.models.backbones import create_untrained_backbone, load_backbone
    from c2fmae.report.page import table_to_lines

    kind = EVALUATIONS.get(name)
    config = kind.from_dict(kind.resolve_data_options(data, test), overrides, source=f"eval {name}")
    with init_distributed(timeout=timedelta(days=7)) as world:  # the first process fits while the others wait
        results = []
        for source in sources:
            backbone = load_backbone(source, **load_options)
            output_dir = home_of(source, out if out is None or len(sources) == 1 else out / slugify(source))
            models = {slugify(name, data or ""): ModelUnderTest(source, backbone, output_dir / "features", world)}
            if include_untrained and source == sources[0]:
                untrained_model = ModelUnderTest(
                    f"untrained {source}", create_untrained_backbone(backbone.spec), output_dir / "features", world
                )
                models[slugify(name, data or "", "untrained")] = untrained_model
            for label, subject in models.items():
                result_dir = make_result_dir(output_dir, label, name, config, subject)
                try:
                    results.append(run_evaluation(name, config, subject, result_dir, again=recompute))
                except KeyboardInterrupt:
                    if world.is_main:
                        print(
                            f"stopped. What was computed is kept in {subject.cache_dir}; run again to go on", flush=True
                        )
                    raise
    if not is_main_process():
        return
    table = make_results_table(results)
    print("\n".join([*table_to_lines(table), *([table.footnote] if table.footnote else [])]))
    _print_protocols(results)
    for result in results:
        print(
            f"{'wrote' if result.is_new else 'was there already, computed before:'} "
            f"{result.result_dir / 'results.json'}"
        )
    if out is None:
        update_run_reports(sources)
    print(f"next: open {results[0].result_dir / 'report.html'}, or c2fmae view pca {' '.join(map(quote, sources))}")


def _print_protocols(results: "Sequence[EvaluationResult]") -> None:
    """Print every protocol, with the sources that it is of where there are several."""
    protocols = dict.fromkeys(result.protocol for result in results)
    for protocol in protocols:
        sources = [result.source for result in results if result.protocol == protocol]
        suffix = f" of {', '.join(sources)}" if len(protocols) > 1 else ""
        print(f"protocol{suffix}: {protocol}")


def _is_recipe_name(source: str) -> bool:
    """Return whether a source can only be meant as a recipe's name."""
    return not Path(source).exists() and not any(sign in source for sign in "/:@.")
