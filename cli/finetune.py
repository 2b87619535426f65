"""`c2fmae eval finetune …`: a classifier on each source's ViT, tried on photos that it has not learned from."""

from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer
from c2fmae_cli.pretrain import is_first, quote_yaml
from c2fmae_cli.result_paths import slug

if TYPE_CHECKING:
    from c2fmae.eval.classification import FinetuneConfig

SETTINGS = "pool, drop_path, train_blocks, granularity_dropout, mixing.…, data.…, training.…, saving.…, watching.…"


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
    average: Annotated[bool, typer.Option("--average", help="Take a run's averaged weights.")] = False,
    allow_missing: Annotated[
        list[str] | None,
        typer.Option("--allow-missing", metavar="NAME", help="A tensor, or pattern, that may be missing; repeatable."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Take a few steps, and tell what the run would take. Nothing is written.")
    ] = False,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help=f"Change one setting; repeatable: {SETTINGS}."),
    ] = None,
) -> None:
    """Fine-tune ViTs to name what photos show, by the papers' recipes; alone, under `torchrun` and under `srun`.

    The run's folder is a classifier that `export` and `eval robustness` take. SIGTERM saves and ends with 75.
    """
    from c2fmae.core.distributed import join_world
    from c2fmae.core.errors import UserError
    from c2fmae.eval.classification import finetune as run
    from c2fmae.eval.classification import set_up
    from c2fmae.measure import measure

    overrides = list(set_ or [])
    if data is None and len(sources) == 1 and (begun := _begun(sources[0], overrides)) is not None:
        if not resume:
            raise UserError(f"{sources[0]}: is a fine-tuned run. Go on with it by --resume, or give --data")
        unused: dict[str, object] = {
            "--test": test,
            "--recipe": recipe,
            "--granularities": granularities,
            "--untrained": untrained,
        }
        unused |= {"--out": out, "--step": step, "--average": average, "--allow-missing": allow_missing}
        if given := [name for name, value in unused.items() if value]:
            raise UserError(f"{sources[0]}: goes on by its own config, without {given[0]}. Change it by --set")
        runs = {Path(sources[0]): begun}
    else:
        words = _data_words(data, test) + ([f"data.granularities=[{granularities}]"] if granularities else [])
        start: dict[str, Any] = {"step": step, "average": average, "allow_missing": tuple(allow_missing or ())}
        configs = [_config(source, start, recipe, words + overrides) for source in sources]
        if untrained:
            configs.append(_config(sources[0], start, recipe, words + overrides, from_scratch=True))
        runs = {}
        for config in configs:
            folder = _folder(config, data, out, is_alone=len(configs) == 1)
            if folder in runs:
                raise UserError(f"{config.init}: would go into {folder}, as another source. Fine-tune them one by one")
            runs[folder] = config
    code: int | None = None
    with join_world(next(iter(runs.values())).training.device) as world:
        for folder, config in runs.items():
            if dry_run:
                told = measure(set_up(config, world), folder)
                _say(f"{folder}:\n{told}\nnext: the same command without --dry-run")
                continue
            outcome = run(config, folder, world, resume=resume, accept_changes=accept_changes)
            _say(f"{outcome.status} at step {outcome.step}: {folder}")
            if outcome.status != "finished":
                code = outcome.code
                break
    if code is not None:  # out here: whoever leaves the others by an exception ends them
        _say("next: the same command with --resume")
        raise typer.Exit(code)
    if is_first() and not dry_run:
        _tell(list(runs))


def _say(text: str) -> None:
    """Print something once, however many processes there are."""
    if is_first():
        print(text)


def _tell(folders: list[Path]) -> None:
    """Print what was found, side by side."""
    from c2fmae.eval.classification.result import read_result
    from c2fmae.eval.results import table_of
    from c2fmae.report.page import as_lines

    results = [read_result(folder) for folder in folders]
    table = table_of(results)
    print("\n".join([*as_lines(table), *([table.note] if table.note else [])]))
    for result in results:
        print(f"protocol of {result.source}: {result.protocol}")
    for folder in folders:
        print(f"wrote {folder}: report.html, evaluations/finetune/classes.csv, and the classifier")
    print(f"next: c2fmae eval robustness {' '.join(quote(str(folder)) for folder in folders)} --custom NAME=FOLDER")


def _begun(source: str, overrides: list[str]) -> "FinetuneConfig | None":
    """Return the config of a fine-tuned run, if a source is one."""
    from c2fmae.eval.classification import FinetuneConfig
    from c2fmae.eval.classification.config import is_finetuned

    path = Path(source)
    return FinetuneConfig.from_yaml(path / "config.yaml", overrides) if is_finetuned(path) else None


def _config(
    source: str, start: dict[str, Any], recipe: str | None, overrides: list[str], *, from_scratch: bool = False
) -> "FinetuneConfig":
    from c2fmae.eval.classification import FinetuneConfig
    from c2fmae.eval.classification.recipes import FINETUNING, SCRATCH, epochs_of, recipe_for
    from c2fmae.models.backbones.load import read_source

    sought = {"step": start["step"], "average": start["average"]}
    if recipe is None:
        recipe = recipe_for(read_source(source, image_size=None, num_heads=None, **sought)[1].spec, epochs_of(source))
    chosen = FINETUNING.get(recipe)
    if not from_scratch:
        _say(f"recipe {recipe}, from {chosen.source}; another one by --recipe, a setting by --set")
    settings = [*chosen.settings, *(SCRATCH if from_scratch else ())]
    values = {"init": source, "from_scratch": from_scratch, **start}
    return FinetuneConfig.read(values, [*settings, *overrides], source="eval finetune")


def _data_words(data: str | None, test: str | None) -> list[str]:
    """Return the settings that --data and --test mean."""
    from c2fmae.eval.classification.config import LabelledData

    return [f"data.{part}={quote_yaml(place)}" for part, place in LabelledData.places(data, test).items()]


def _folder(config: "FinetuneConfig", data: str | None, out: Path | None, *, is_alone: bool) -> Path:
    """Return the folder of a run."""
    name = slug(config.init, *(["scratch"] if config.from_scratch else []))
    if out is not None:
        return out if is_alone else out / name
    return Path("runs") / slug(name, "finetuned", data or "")
