"""One evaluation of one source: its numbers, the protocol beside them, and where they are kept."""

import hashlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from c2fmae.core.environment import collect_environment
from c2fmae.core.files import write_atomic
from c2fmae.core.json_file import write_json
from c2fmae.eval.evaluation import Evaluation, ModelUnderTest
from c2fmae.eval.metrics import Metric
from c2fmae.report import Details, Page, Section, Table, Text, render_page

log = logging.getLogger(__name__)

RESULT_FORMAT = 2
RESULTS_FILE, PAGE_FILE = "results.json", "report.html"


@dataclass(frozen=True)
class EvaluationResult:
    """What an evaluation found."""

    evaluation: str
    source: str
    protocol: str
    metrics: tuple[Metric, ...]
    result_dir: Path
    is_new: bool
    """Whether it was computed now, and not found as it was computed before."""


def run_evaluation(
    name: str,
    config: Evaluation,
    model: ModelUnderTest,
    result_dir: Path,
    *,
    again: bool = False,
    measured: Sequence[Metric] | None = None,
) -> EvaluationResult:
    """Run an evaluation, or return what it found before with the same settings, weights and data; write it down.

    Metrics that were taken already, as times in turn with other sources, are given as `measured`.
    """
    identity = compute_identity(name, config, model)
    cached = (
        None
        if again or measured is not None or not model.world.is_main
        else _load_cached_metrics(result_dir / RESULTS_FILE, config, identity)
    )
    cached = model.world.broadcast_object(cached)
    protocol = str(identity["protocol"])
    if cached is not None:
        return EvaluationResult(name, model.name, protocol, cached, result_dir, is_new=False)
    started = time.perf_counter()
    metrics = tuple(config.run(model) if measured is None else measured)
    result = EvaluationResult(name, model.name, protocol, metrics, result_dir, is_new=True)
    if model.world.is_main:
        seconds = round(time.perf_counter() - started, 1)
        metadata = {"seconds": seconds, "environment": collect_environment(world_size=model.world.size)}
        save_result(result, {**identity, "load_report": str(model.backbone.load_report), **metadata})
    return result


def save_result(result: EvaluationResult, metadata: Mapping[str, Any]) -> None:
    """Write a result and the page about it; `metadata` are its identity, what was loaded, and the environment."""
    document = {**metadata, "source": result.source, "metrics": [metric.to_json() for metric in result.metrics]}
    write_json(result.result_dir / RESULTS_FILE, document, is_shared=True)
    page = render_page(make_result_page(result, document)).encode()
    write_atomic(result.result_dir / PAGE_FILE, page, is_shared=True)


def compute_identity(name: str, config: Evaluation, model: ModelUnderTest) -> dict[str, Any]:
    """Return all that a result depends on; who does the work is not among it."""
    return {
        "format": RESULT_FORMAT,
        "evaluation": name,
        "config": _dump_config(config),
        "weights": model.digest,
        "protocol": config.describe_protocol(model),
        **config.identify_inputs(model),
    }


def make_result_dir(parent: Path, label: str, name: str, config: Evaluation, model: ModelUnderTest) -> Path:
    """Return the folder of a result: other settings, weights or data have another."""
    identity = compute_identity(name, config, model)
    for path in sorted(parent.glob(f"{label}-*/{RESULTS_FILE}")):  # those of earlier versions have other digests
        if _load_cached_metrics(path, config, identity) is not None:
            return path.parent
    return parent / f"{label}-{hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:6]}"


def make_metrics_table(caption: str, results: Sequence[tuple[str, Sequence[Metric]]]) -> Table:
    """Return the metrics of several sources, which stand beside them, side by side.

    The count is shown where it is the same for all sources; `collect_notes` returns what belongs below the table.
    """
    columns = [{metric.identity: metric for metric in metrics} for _, metrics in results]
    rows = []
    for identity in dict.fromkeys(identity for column in columns for identity in column):
        metrics = [column.get(identity) for column in columns]
        first = next(metric for metric in metrics if metric)
        counts = {metric.count for metric in metrics if metric}
        count_text = f"{counts.pop():,}" if len(counts) == 1 else ""
        rows.append((first.label, first.unit, count_text, *(metric.format() if metric else "–" for metric in metrics)))
    return Table(caption, ("", "unit", "count", *(source for source, _ in results)), rows)


def collect_notes(results: Sequence[tuple[str, Sequence[Metric]]]) -> list[str]:
    """Return a line for each note of a metric, with the sources that it is about unless it is about all."""
    sources_by_note: dict[tuple[str, str], list[str]] = {}
    for source, metrics in results:
        for metric in metrics:
            for note in metric.notes:
                sources_by_note.setdefault((metric.label, note), []).append(source)
    return [
        f"{label}: {note}" if len(sources) == len(results) else f"{label}, {', '.join(sources)}: {note}"
        for (label, note), sources in sources_by_note.items()
    ]


def make_results_table(results: Sequence[EvaluationResult]) -> Table:
    """Return the metrics of one evaluation of several sources, with their notes below."""
    columns = [(result.source, result.metrics) for result in results]
    table = make_metrics_table(results[0].evaluation, columns)
    return replace(table, footnote=" ".join(f"{note}." for note in collect_notes(columns)))


def make_result_sections(run_dir: Path) -> list[Section]:
    """Return what evaluations of a run found, for its page: those by one protocol together."""
    results_by_protocol: dict[tuple[str, str], list[EvaluationResult]] = {}
    for path in sorted(run_dir.glob(f"evaluations/*/{RESULTS_FILE}")):
        try:
            result = load_result(path.parent)
        except (OSError, ValueError, KeyError, TypeError):
            log.warning("%s: is no result of an evaluation; left out of the page", path)
            continue
        results_by_protocol.setdefault((result.evaluation, result.protocol), []).append(result)
    sections: list[Section] = []
    for (name, protocol), results in results_by_protocol.items():
        sections += [Text(protocol, title=f"Evaluation: {name}"), make_results_table(results)]
    return sections


def load_result(result_dir: Path) -> EvaluationResult:
    """Return what was written down in a folder."""
    document = json.loads((result_dir / RESULTS_FILE).read_bytes())
    metrics = tuple(Metric.from_json(values) for values in document["metrics"])
    name, source, protocol = (document[key] for key in ("evaluation", "source", "protocol"))
    return EvaluationResult(name, source, protocol, metrics, result_dir, is_new=False)


def make_result_page(result: EvaluationResult, document: Mapping[str, Any]) -> Page:
    """Return the page about an evaluation."""
    return Page(
        f"{result.evaluation} of {result.source}",
        "Numbers, and the protocol by which they were taken.",
        [
            make_results_table([result]),
            Text(result.protocol, title="Protocol"),
            Details("What was loaded", document["load_report"]),
            Details("All settings", json.dumps(document["config"], indent=2, ensure_ascii=False)),
            Details("Environment", json.dumps(document["environment"], indent=2, ensure_ascii=False)),
        ],
    )


def _dump_config(config: Evaluation) -> dict[str, Any]:
    return config.model_dump(mode="json", exclude={"workers"})


def _load_cached_metrics(path: Path, config: Evaluation, identity: dict[str, Any]) -> tuple[Metric, ...] | None:
    """Return the metrics of a file that is about just this; None where there is none, or it is about another."""
    try:
        document = json.loads(path.read_bytes())
        document["config"] = _dump_config(type(config).from_dict(document["config"]))  # in the current format
        if any(document.get(key) != value for key, value in json.loads(json.dumps(identity)).items()):
            return None
        return tuple(Metric.from_json(values) for values in document["metrics"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
