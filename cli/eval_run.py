"""Options and functions of all `c2fmae eval` commands: open models, run an evaluation, print its results."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from c2fmae.core.log import is_main_process
from c2fmae.core.text import slugify

if TYPE_CHECKING:
    from c2fmae.core.distributed import World
    from c2fmae.core.experiment_config import RunKind
    from c2fmae.core.training import DeviceName
    from c2fmae.eval.evaluation import Evaluation, ModelUnderTest
    from c2fmae.eval.results import EvaluationResult

SourcesArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="SOURCE", help="A run, a checkpoint, timm:NAME@FILE, an exported folder, or an official file."
    ),
]
ResultsDirOption = Annotated[
    Path | None, typer.Option(help="Directory for results. By default, RUN/evaluations or evaluations/….")
]
RecomputeOption = Annotated[bool, typer.Option("--recompute", help="Ignore stored results and predictions.")]
LimitOption = Annotated[
    int | None, typer.Option("--limit", min=1, help="At most this many images of each set, evenly spaced over it.")
]
AllowMissingOption = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-missing", metavar="NAME", help="Tensors that may be missing, by name or pattern; repeatable."
    ),
]
StepOption = Annotated[int | None, typer.Option(help="Load a run's checkpoint of this step.")]
EmaOption = Annotated[bool, typer.Option("--ema", help="Load a run's averaged weights.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one setting; repeatable.")
]


def run_and_print(
    name: str,
    config: "Evaluation",
    open_models: "Callable[[World], Iterable[ModelUnderTest]]",
    *,
    out: Path | None = None,
    label: str | None = None,
    recompute: bool = False,
    device: "DeviceName" = "auto",
    timeout: timedelta = timedelta(days=7),
) -> "tuple[list[EvaluationResult], list[Path]]":
    """Evaluate models, print the results, and return them with the files of the comparison; empty in other ranks.

    `timeout` limits how long ranks wait for each other. The default allows the main process to fit probes for days.
    """
    from c2fmae.core.distributed import init_distributed
    from c2fmae.eval.evaluation import EvaluationStopped
    from c2fmae.eval.results import format_protocols, run_evaluation

    cache_dirs, stopped, results = set[Path](), None, []
    with init_distributed(device, timeout=timeout) as world:
        try:
            models = _record_cache_dirs(open_models(world), config, cache_dirs)
            results = run_evaluation(name, config, models, label=label, recompute=recompute)
        except EvaluationStopped as error:  # not raised inside `with`, which would abort the other ranks
            stopped = error
        except KeyboardInterrupt:
            if world.is_main and cache_dirs:
                dirs = ", ".join(map(str, sorted(cache_dirs)))
                print(f"interrupted. Finished parts are in {dirs}; run the same command again to continue", flush=True)
            raise
    if stopped is not None:
        if is_main_process():
            print(stopped)
        raise typer.Exit(stopped.exit_code)
    if not is_main_process():
        return [], []
    print("\n".join([*config.format_results(results), *format_protocols(results)]))
    for result in results:
        path = result.result_dir / "results.json"
        hint = " with these settings; --recompute ignores it" if config.reuses_results else ""
        print(f"wrote {path}" if result.is_new else f"{path} exists{hint}")
    comparison = config.write_comparison(results, out)
    for path in comparison:
        print(f"wrote {path}")
    return results, comparison


def open_models(
    sources: Sequence[str],
    world: "World",
    *,
    out: Path | None,
    is_nested: bool,
    include_untrained: bool = False,
    **load_options: Any,
) -> "Iterator[ModelUnderTest]":
    """Yield the models of sources; with `is_nested`, each has its own directory below `out`."""
    from c2fmae.eval.evaluation import LoadOptions, ModelUnderTest

    memo: dict[str, Any] = {}
    for index, source in enumerate(sources):
        output_dir = choose_results_dir(source, out / slugify(source) if out is not None and is_nested else out)
        options = LoadOptions(**load_options)
        model = ModelUnderTest(source, output_dir, world, options, memo=memo, compared_sources=tuple(sources))
        yield model
        if include_untrained and index == 0:
            yield model.with_new_weights()


def choose_results_dir(source: str, out: Path | None) -> Path:
    """Return the directory for the results of a source: `out` if given; inside the run directory for a run."""
    if out is not None:
        return out
    from c2fmae.core.run_dir import RunDir

    return Path(source) / "evaluations" if RunDir(Path(source)).is_started else Path("evaluations") / slugify(source)


def is_run_of_kind(source: str, kind: "RunKind") -> bool:
    """Return whether a source is the directory of a run of this kind."""
    from c2fmae.core.run_dir import RunDir
    from c2fmae.core.run_info import read_run_info

    return RunDir(Path(source)).is_started and read_run_info(Path(source)).kind == kind


def is_finished(source: str) -> bool:
    """Return whether a run has ended with its last step."""
    from c2fmae.core.run_dir import RunDir

    return (RunDir(Path(source)).read_state() or {}).get("status") == "finished"


def update_run_reports(sources: Sequence[str]) -> None:
    """Rewrite the report pages of runs with new results."""

    from c2fmae import pretrain_report
    from c2fmae.core.run_dir import RunDir
    from c2fmae.core.run_info import read_run_info
    from c2fmae.eval.classification.result import write_finetune_report
    from c2fmae.eval.detection.experiment import update_detection_report
    from c2fmae.eval.segmentation.experiment import update_segmentation_report

    writers: dict[RunKind, Callable[[RunDir], None]] = {
        "pretraining": pretrain_report.write_pretraining_report,
        "finetuning": write_finetune_report,
        "segmentation": update_segmentation_report,
        "detection": update_detection_report,
    }
    for source in sources:
        if (Path(source) / "metrics.jsonl").is_file():
            writers[read_run_info(Path(source)).kind](RunDir(Path(source)))
            print(f"wrote {Path(source) / 'report.html'}: the run's page, with these results")


def _record_cache_dirs(
    models: "Iterable[ModelUnderTest]", config: "Evaluation", cache_dirs: set[Path]
) -> "Iterator[ModelUnderTest]":
    for model in models:
        if config.cache_name is not None:
            cache_dirs.add(model.output_dir / config.cache_name)
        yield model
