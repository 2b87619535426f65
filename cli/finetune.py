"""`c2fmae eval finetune …`: a classifier on each source's ViT, tried on photos that it has not learned from."""

from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer
from c2fmae_cli.eval_run import slugify
from c2fmae_cli.pretrain import is_main_process, quote_yaml

if TYPE_CHECKING:
    from c2fmae.eval.classification.config import FinetuneConfig

FINETUNE_SET_KEYS = (
    "pool, drop_path, train_blocks, granularity_dropout, mixing.…, data.…, training.…, saving.…, watching.…"
)


def finetune(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="SOURCE", help="A run, a checkpoint, timm:NAME@FILE, or whatever else holds a ViT."),
    ],
    data: Annotated[
        str | None,
        typer.Option(
            help="Photos with labels: a folder of a training and a test set (or with --test the training set), "
            "or `generated`."
        ),
    ] = None,
    test: Annotated[str | None, typer.Option(help="The test set, where --data does not hold it.")] = None,
    recipe: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="b-400, b-1600, s, l, small …; that of the ViT's size, unless given."),
    ] = None,
    granularities: Annotated[
        str | None, typer.Option(metavar="NAME,…", help="What it is to see: rgb, unless given, or with maps.")
    ] = None,
    untrained: Annotated[
        bool, typer.Option("--untrained", help="Train the first source's ViT from scratch, too: the reference row.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="The run's folder (with several, the one above them); runs/… unless given.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with what is in the folders, or begin where there is nothing.")
    ] = False,
    accept_changes: Annotated[
        bool, typer.Option("--accept-changes", help="Go on although the config is not that of before.")
    ] = False,
    step: Annotated[int | None, typer.Option(help="Take a run's checkpoint of this step.")] = None,
    use_ema: Annotated[bool, typer.Option("--average", help="Take a run's averaged weights.")] = False,
    allow_missing: Annotated[
        list[str] | None,
        typer.Option("--allow-missing", metavar="NAME", help="A tensor, or pattern, that may be missing; repeatable."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Take a few steps, and tell what the run would take. Nothing is written.")
    ] = False,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help=f"Change one setting; repeatable: {FINETUNE_SET_KEYS}."),
    ] = None,
) -> None:
    """Fine-tune ViTs to name what photos show, by the papers' recipes; alone, under `torchrun` and under `srun`.

    The run's folder is a classifier that `export` and `eval robustness` take. SIGTERM saves and ends with 75.
    """
    from c2fmae.core.distributed import init_distributed
    from c2fmae.core.errors import UserError
    from c2fmae.eval.classification.experiment import build_finetuning
    from c2fmae.eval.classification.experiment import finetune as run
    from c2fmae.measure import measure_run

    overrides = list(set_ or [])
    if (
        data is None
        and len(sources) == 1
        and (existing_config := _read_finetuned_config(sources[0], overrides)) is not None
    ):
        if not resume:
            raise UserError(f"{sources[0]}: is a fine-tuned run. Go on with it by --resume, or give --data")
        unused: dict[str, object] = {
            "--test": test,
            "--recipe": recipe,
            "--granularities": granularities,
            "--untrained": untrained,
        }
        unused |= {"--out": out, "--step": step, "--average": use_ema, "--allow-missing": allow_missing}
        if given := [name for name, value in unused.items() if value]:
            raise UserError(f"{sources[0]}: goes on by its own config, without {given[0]}. Change it by --set")
        runs = {Path(sources[0]): existing_config}
    else:
        data_overrides = _labelled_data_overrides(data, test) + (
            [f"data.granularities=[{granularities}]"] if granularities else []
        )
        load_options: dict[str, Any] = {"step": step, "average": use_ema, "allow_missing": tuple(allow_missing or ())}
        configs = [
            _make_finetune_config(source, load_options, recipe, data_overrides + overrides) for source in sources
        ]
        if untrained:
            configs.append(
                _make_finetune_config(sources[0], load_options, recipe, data_overrides + overrides, from_scratch=True)
            )
        runs = {}
        for config in configs:
            run_dir = _choose_run_dir(config, data, out, is_alone=len(configs) == 1)
            if run_dir in runs:
                raise UserError(f"{config.init}: would go into {run_dir}, as another source. Fine-tune them one by one")
            runs[run_dir] = config
    code: int | None = None
    with init_distributed(next(iter(runs.values())).training.device) as world:
        for run_dir, config in runs.items():
            if dry_run:
                estimate = measure_run(build_finetuning(config, world), run_dir)
                _print_on_main(f"{run_dir}:\n{estimate}\nnext: the same command without --dry-run")
                continue
            outcome = run(config, run_dir, world, resume=resume, accept_changes=accept_changes)
            _print_on_main(f"{outcome.status} at step {outcome.step}: {run_dir}")
            if outcome.status != "finished":
                code = outcome.exit_code
                break
    if code is not None:  # out here: whoever leaves the others by an exception ends them
        _print_on_main("next: the same command with --resume")
        raise typer.Exit(code)
    if is_main_process() and not dry_run:
        _print_results(list(runs))


def _print_on_main(text: str) -> None:
    """Print something once, however many processes there are."""
    if is_main_process():
        print(text)


def _print_results(run_dirs: list[Path]) -> None:
    """Print what was found, side by side."""
    from c2fmae.eval.classification.result import read_finetune_result
    from c2fmae.eval.results import format_results

    results = [read_finetune_result(folder) for folder in run_dirs]
    print("\n".join(format_results(results)))
    for result in results:
        print(f"protocol of {result.source}: {result.protocol}")
    for folder in run_dirs:
        print(f"wrote {folder}: report.html, evaluations/finetune/classes.csv, and the classifier")
    print(f"next: c2fmae eval robustness {' '.join(quote(str(folder)) for folder in run_dirs)} --custom NAME=FOLDER")


def _read_finetuned_config(source: str, overrides: list[str]) -> "FinetuneConfig | None":
    """Return the config of a fine-tuned run, if a source is one."""
    from c2fmae.eval.classification.config import FinetuneConfig, is_finetuned

    path = Path(source)
    return FinetuneConfig.from_yaml(path / "config.yaml", overrides) if is_finetuned(path) else None


def _make_finetune_config(
    source: str, load_options: dict[str, Any], recipe: str | None, overrides: list[str], *, from_scratch: bool = False
) -> "FinetuneConfig":
    from c2fmae.eval.classification.config import FinetuneConfig
    from c2fmae.eval.classification.recipes import (
        FINETUNE_RECIPES,
        choose_recipe,
        read_pretrain_epochs,
        without_layer_decay,
    )
    from c2fmae.models.backbones.load import read_source

    source_options = {"step": load_options["step"], "use_ema": load_options["average"]}
    if recipe is None:
        recipe = choose_recipe(
            read_source(source, image_size=None, num_heads=None, **source_options)[1].spec, read_pretrain_epochs(source)
        )
    recipe_entry = FINETUNE_RECIPES.get(recipe)
    if not from_scratch:
        _print_on_main(f"recipe {recipe}, from {recipe_entry.reference}; another one by --recipe, a setting by --set")
    config = recipe_entry.make(source)
    config = without_layer_decay(config) if from_scratch else config
    values = {**config.model_dump(), "from_scratch": from_scratch, **load_options}
    return FinetuneConfig.from_dict(values, overrides, source="eval finetune")


def _labelled_data_overrides(data: str | None, test: str | None) -> list[str]:
    """Return the settings that --data and --test mean."""
    from c2fmae.eval.classification.config import ClassificationDataConfig

    return [
        f"data.{part}={quote_yaml(place)}"
        for part, place in ClassificationDataConfig.resolve_data_options(data, test).items()
    ]


def _choose_run_dir(config: "FinetuneConfig", data: str | None, out: Path | None, *, is_alone: bool) -> Path:
    """Return the folder of a run."""
    name = slugify(config.init, *(["scratch"] if config.from_scratch else []))
    if out is not None:
        return out if is_alone else out / name
    return Path("runs") / slugify(name, "finetuned", data or "")
