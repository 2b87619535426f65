"""Results of evaluations: compute or reuse them, write them as JSON and as a page, and show them in tables."""

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from c2fmae.core.environment import collect_environment
from c2fmae.core.errors import UserError
from c2fmae.core.files import write_atomic
from c2fmae.core.json_file import read_json, to_json, write_json
from c2fmae.eval.cache import compute_json_digest
from c2fmae.eval.evaluation import Evaluation, ModelUnderTest, Outcome
from c2fmae.eval.metrics import Metric
from c2fmae.report import Details, Page, Section, Table, Text, render_page, table_to_lines

log = logging.getLogger(__name__)

RESULT_FORMAT = 2
RESULTS_FILE, PAGE_FILE = "results.json", "report.html"
MAX_RESULT_BYTES = 16 << 20


@dataclass(frozen=True)
class EvaluationResult:
    """The metrics of one evaluation of one model, and where they are stored."""

    evaluation: str
    source: str
    protocol: str
    metrics: tuple[Metric, ...]
    result_dir: Path
    is_new: bool
    """Whether it was computed now, not read from a stored result."""
    details: Any = None
    """Data that is not stored, for the evaluation's own tables and pages."""


def run_evaluation(
    name: str,
    config: Evaluation,
    models: Iterable[ModelUnderTest],
    *,
    label: str | None = None,
    recompute: bool = False,
) -> list[EvaluationResult]:
    """Evaluate models, or return stored results with the same settings, weights and data.

    Each result is written as soon as it has been computed, into a directory whose name begins with `label`. Models are
    in memory together only if the evaluation shares work between them.
    """
    groups = [list(models)] if config.shares_work else ([model] for model in models)
    results: list[EvaluationResult] = []
    for group in groups:
        results += _run_group(name, config, group, label or name, recompute)
    return results


def _run_group(
    name: str, config: Evaluation, models: Sequence[ModelUnderTest], label: str, recompute: bool
) -> Iterator[EvaluationResult]:
    identities = [compute_identity(name, config, model) if config.reuses_results else None for model in models]
    stored = [
        model.world.broadcast_object(
            find_stored_result(config, identity, model) if identity and model.world.is_main and not recompute else None
        )
        for model, identity in zip(models, identities, strict=True)
    ]
    started = time.perf_counter()
    pending = [model for model, result in zip(models, stored, strict=True) if result is None]
    outcomes = config.run_models(pending, recompute=recompute)
    for model, identity, result in zip(models, identities, stored, strict=True):
        if result is not None:
            yield result
            continue
        outcome = next(outcomes)
        seconds, started = time.perf_counter() - started, time.perf_counter()
        if outcome.stored is not None:
            yield outcome.stored
        else:
            yield _write_outcome(
                config, model, identity or compute_identity(name, config, model), label, outcome, seconds
            )


def _write_outcome(
    config: Evaluation, model: ModelUnderTest, identity: Mapping[str, Any], label: str, outcome: Outcome, seconds: float
) -> EvaluationResult:
    suffix = f"{'untrained-' * model.is_untrained}{compute_json_digest(identity, length=6)}"
    result = EvaluationResult(
        identity["evaluation"],
        model.name,
        config.describe_protocol(model),
        outcome.metrics,
        model.output_dir / f"{label}-{suffix}",
        is_new=True,
        details=outcome.details,
    )
    if model.world.is_main:
        loaded = model.classifier if config.model_kind == "classifier" else model.backbone
        metadata = {
            "load_report": str(loaded.load_report),
            "seconds": round(seconds, 1),
            "environment": collect_environment(world_size=model.world.size),
        }
        save_result(result, {**identity, **metadata})
    return result


def compute_identity(name: str, config: Evaluation, model: ModelUnderTest) -> dict[str, Any]:
    """Return everything that a result depends on: neither wording nor the number of processes."""
    return {
        "format": RESULT_FORMAT,
        "evaluation": name,
        "protocol_version": config.protocol_version,
        "config": config.identity_settings(),
        "weights": model.classifier.digest if config.model_kind == "classifier" else model.digest,
        "inputs": config.identify_inputs(model),
    }


def save_result(result: EvaluationResult, metadata: Mapping[str, Any], sections: Sequence[Section] = ()) -> None:
    """Write a result and its page; `metadata` holds its identity, the load report and the environment.

    The page shows `sections` below the metrics.
    """
    document = {
        **metadata,
        "source": result.source,
        "protocol": result.protocol,
        "metrics": [metric.to_json() for metric in result.metrics],
    }
    write_json(result.result_dir / RESULTS_FILE, document, is_shared=True)
    page = render_page(make_result_page(result, document, sections)).encode()
    write_atomic(result.result_dir / PAGE_FILE, page, is_shared=True)


def load_result(result_dir: Path) -> EvaluationResult:
    """Return a stored result of any format."""
    path = result_dir / RESULTS_FILE
    document = read_json(path, max_bytes=MAX_RESULT_BYTES, fix="Delete it, or evaluate again with --recompute")
    try:
        metrics = tuple(Metric.from_json(values) for values in document["metrics"])
        name, source, protocol = (_get_text(document, key) for key in ("evaluation", "source", "protocol"))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: is not the result of an evaluation ({error}). Delete it") from error
    return EvaluationResult(name, source, protocol, metrics, result_dir, is_new=False)


def _get_text(document: Mapping[str, Any], key: str) -> str:
    text = document[key]
    if not isinstance(text, str):
        raise TypeError(f"{key}: expected text, got {type(text).__name__}")
    return text


def find_stored_result(
    config: Evaluation, identity: Mapping[str, Any], model: ModelUnderTest
) -> EvaluationResult | None:
    """Return the stored result of this identity; None if there is none."""
    for path in sorted(model.output_dir.glob(f"*/{RESULTS_FILE}")):
        try:
            document = read_json(path, max_bytes=MAX_RESULT_BYTES)
            if _stored_identity(document, type(config), identity["inputs"]) == identity:
                return replace(load_result(path.parent), source=model.name)
        except (UserError, AttributeError, KeyError, TypeError):  # an invalid file is not this result
            continue
    return None


def _stored_identity(
    document: Mapping[str, Any], config_class: type[Evaluation], inputs: Mapping[str, str]
) -> dict[str, Any]:
    """Return the identity of a stored result in the current format."""
    is_format_1 = document["format"] == 1  # no protocol version; inputs are top-level keys
    return {
        "format": RESULT_FORMAT if is_format_1 else document["format"],
        "evaluation": document["evaluation"],
        "protocol_version": 1 if is_format_1 else document["protocol_version"],
        "config": config_class.from_dict(document["config"]).identity_settings() if is_format_1 else document["config"],
        "weights": document["weights"],
        "inputs": {key: document[key] for key in inputs} if is_format_1 else document["inputs"],
    }


def make_metrics_table(caption: str, results: Sequence[EvaluationResult]) -> Table:
    """Return the metrics of one evaluation of several models, side by side.

    The count is shown if it is the same for all models. `collect_notes` returns the notes to show below the table.
    """
    columns = [{metric.identity: metric for metric in result.metrics} for result in results]
    rows = []
    for identity in dict.fromkeys(identity for column in columns for identity in column):
        metrics = [column.get(identity) for column in columns]
        first = next(metric for metric in metrics if metric)
        counts = {metric.count for metric in metrics if metric}
        count_text = f"{counts.pop():,}" if len(counts) == 1 else ""
        rows.append((first.label, first.unit, count_text, *(metric.format() if metric else "–" for metric in metrics)))
    return Table(caption, ("", "unit", "count", *(result.source for result in results)), rows)


def collect_notes(results: Sequence[EvaluationResult]) -> list[str]:
    """Return a line for each note of a metric, with its models unless it applies to all of them."""
    sources_by_note: dict[tuple[str, str], list[str]] = {}
    for result in results:
        for metric in result.metrics:
            for note in metric.notes:
                sources_by_note.setdefault((metric.label, note), []).append(result.source)
    return [
        f"{label}: {note}" if len(sources) == len(results) else f"{label}, {', '.join(sources)}: {note}"
        for (label, note), sources in sources_by_note.items()
    ]


def group_by_protocol(results: Sequence[EvaluationResult]) -> dict[tuple[str, str], list[EvaluationResult]]:
    """Return results by evaluation and protocol, since only those of one protocol can be compared."""
    groups: dict[tuple[str, str], list[EvaluationResult]] = {}
    for result in results:
        groups.setdefault((result.evaluation, result.protocol), []).append(result)
    return groups


def format_results(results: Sequence[EvaluationResult]) -> list[str]:
    """Return a table of results and its notes as lines of text."""
    return [*table_to_lines(make_metrics_table(results[0].evaluation, results)), *collect_notes(results)]


def format_protocols(results: Sequence[EvaluationResult]) -> list[str]:
    """Return a line for each protocol, with its models if there are several protocols."""
    groups = group_by_protocol(results)
    lines = []
    for (_, protocol), group in groups.items():
        suffix = f" of {', '.join(result.source for result in group)}" if len(groups) > 1 else ""
        lines.append(f"protocol{suffix}: {protocol}")
    return lines


def make_result_sections(run_dir: Path) -> list[Section]:
    """Return the stored results of a run for its page, with one table for each protocol."""
    results = []
    for path in sorted(run_dir.glob(f"evaluations/*/{RESULTS_FILE}")):
        try:
            results.append(load_result(path.parent))
        except UserError as error:
            log.warning("%s. The page does not show it", str(error).rstrip("."))
    sections: list[Section] = []
    for (name, protocol), group in group_by_protocol(results).items():
        sections += [Text(protocol, title=f"Evaluation: {name}"), *make_table_sections(group)]
    return sections


def make_table_sections(results: Sequence[EvaluationResult]) -> list[Section]:
    """Return a table of results with its notes below."""
    notes = " ".join(f"{note}." for note in collect_notes(results))
    return [replace(make_metrics_table(results[0].evaluation, results), footnote=notes)]


def make_result_page(result: EvaluationResult, document: Mapping[str, Any], sections: Sequence[Section] = ()) -> Page:
    """Return the page of a result, with further sections below the metrics."""
    return Page(
        f"{result.evaluation} of {result.source}",
        "Metrics and the protocol of their measurement.",
        [
            *make_table_sections([result]),
            *sections,
            Text(result.protocol, title="Protocol"),
            *make_detail_sections(document["load_report"], document),
        ],
    )


def make_detail_sections(load_report: str, document: Mapping[str, Any]) -> list[Section]:
    """Return the collapsed sections of a page of results: loaded weights, settings and environment."""
    return [
        Details("Loaded weights", load_report),
        Details("All settings", to_json(document["config"]).strip()),
        Details("Environment", to_json(document["environment"]).strip()),
    ]
