"""`c2fmae eval …`: one command for each registered evaluation."""

import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core
from c2fmae_cli.detect import detect
from c2fmae_cli.eval_run import (
    AllowMissingOption,
    EmaOption,
    LimitOption,
    RecomputeOption,
    ResultsDirOption,
    SetOption,
    SourcesArgument,
    StepOption,
    choose_results_dir,
    open_models,
    run_and_print,
    update_run_reports,
)
from c2fmae_cli.finetune import finetune
from c2fmae_cli.options import Command
from c2fmae_cli.robustness import robustness
from c2fmae_cli.segment import segment

from c2fmae.core.text import slugify

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from c2fmae.core.distributed import World
    from c2fmae.eval.evaluation import ModelUnderTest


def cost(
    sources: Annotated[list[str], typer.Argument(metavar="SOURCE", help="Runs, recipes, methods or any backbone.")],
    check: Annotated[bool, typer.Option("--check", help="Count operations with fvcore as well.")] = False,
    out: ResultsDirOption = None,
    allow_missing: AllowMissingOption = None,
    set_: SetOption = None,
) -> None:
    """Measure the cost of backbones and, for runs and recipes, of an epoch of pre-training."""
    from c2fmae.eval.cost.config import CostEvaluation

    config = CostEvaluation.from_dict({"check": check}, set_ or [], source="eval cost")
    open_sources = partial(_open_runs_and_recipes, sources, out=out, allow_missing=tuple(allow_missing or ()))
    results, _ = run_and_print("cost", config, open_sources, out=out)
    methods = [result.source for result in results if result.details is not None]
    if results:
        print(f"next: c2fmae describe {next(iter(methods), 'c2fmae-b')}  # the operations of each part of a method")


_COMMANDS: dict[str, Callable[..., None]] = {
    "cost": cost,
    "detect": detect,
    "finetune": finetune,
    "robustness": robustness,
    "segment": segment,
}
"""Commands with options of their own. All other evaluations have the options of `_make_command`."""


class _EvaluationGroup(typer.core.TyperGroup):
    """A command for each registered evaluation, including those of plug-ins; they are imported on first use."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of all evaluations."""
        from c2fmae.eval.builtin import EVALUATIONS

        del ctx
        return list(EVALUATIONS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return the command of an evaluation; the error for an unknown name suggests the nearest one."""
        from c2fmae.eval.builtin import EVALUATIONS

        del ctx
        settings = ", ".join(EVALUATIONS.get(cmd_name).setting_names())
        app = typer.Typer(add_completion=False)
        command = _COMMANDS.get(cmd_name)
        details = (inspect.getdoc(command) or "").partition("\n\n")[2]  # what follows the summary
        text = "\n\n".join(filter(None, [EVALUATIONS.describe(cmd_name), details, f"Settings for --set: {settings}."]))
        app.command(cmd_name, cls=Command, help=text)(command or _make_command(cmd_name))
        return typer.main.get_command(app)


eval_ = typer.Typer(cls=_EvaluationGroup, help="Evaluate backbones and classifiers.", no_args_is_help=True)


@eval_.callback()
def _accept_subcommands() -> None: ...


def _make_command(name: str) -> Callable[..., None]:
    def run(
        sources: SourcesArgument,
        data: Annotated[
            str | None,
            typer.Option(
                help="Scenes: a folder with a training and a test set (with --test, the training set), or `generated`."
            ),
        ] = None,
        test: Annotated[str | None, typer.Option(help="The test set, if --data does not contain it.")] = None,
        limit: LimitOption = None,
        out: ResultsDirOption = None,
        untrained: Annotated[
            bool, typer.Option("--untrained", help="Also evaluate the first source's ViT with new weights.")
        ] = False,
        recompute: RecomputeOption = False,
        allow_missing: AllowMissingOption = None,
        step: StepOption = None,
        use_ema: EmaOption = False,
        set_: SetOption = None,
    ) -> None:
        from c2fmae.eval.builtin import EVALUATIONS

        evaluation = EVALUATIONS.get(name)
        values = evaluation.resolve_data_options(data, test) | evaluation.resolve_limit(limit)
        config = evaluation.from_dict(values, set_ or [], source=f"eval {name}")
        open_sources = partial(
            open_models,
            sources,
            out=out,
            is_nested=len(sources) > 1,
            include_untrained=untrained,
            step=step,
            use_ema=use_ema,
            allow_missing=tuple(allow_missing or ()),
        )
        results, _ = run_and_print(
            name, config, open_sources, out=out, label=slugify(name, data or ""), recompute=recompute
        )
        if results and out is None:
            update_run_reports(sources)
        if results:
            page = results[0].result_dir / "report.html"
            print(f"next: open {page}, or c2fmae view pca {' '.join(map(quote, sources))}")

    return run


def _open_runs_and_recipes(
    sources: "Sequence[str]", world: "World", *, out: Path | None, allow_missing: tuple[str, ...]
) -> "Iterator[ModelUnderTest]":
    from c2fmae.eval.evaluation import ModelUnderTest
    from c2fmae.models.backbones import create_untrained_backbone
    from c2fmae.recipes.config import load_recipe_or_method

    for source in sources:
        nested_out = out / slugify(source) if out is not None and len(sources) > 1 else out
        if Path(source).exists() or any(character in source for character in "/:@."):
            yield from open_models([source], world, out=nested_out, is_nested=False, allow_missing=allow_missing)
        else:  # the name of a recipe or a method; the error for an unknown one suggests the nearest
            method = load_recipe_or_method(source).method
            backbone = create_untrained_backbone(method.backbone_spec())
            output_dir = choose_results_dir(source, nested_out)
            yield ModelUnderTest.in_memory(source, output_dir, world=world, method=method, backbone=backbone)
