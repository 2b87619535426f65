"""One evaluation of one source: its numbers, the protocol beside them, and where they are kept."""

import hashlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from c2fmae.core.environment import environment
from c2fmae.eval.evaluation import Evaluation, Metric, Subject
from c2fmae.eval.keeping import keep
from c2fmae.report import Details, Page, Section, Table, Text, render

log = logging.getLogger(__name__)

FORMAT = 1
RESULTS, PAGE = "results.json", "report.html"


@dataclass(frozen=True)
class Result:
    """What an evaluation found."""

    evaluation: str
    source: str
    protocol: str
    metrics: tuple[Metric, ...]
    folder: Path
    is_new: bool
    """Whether it was computed now, and not found as it was computed before."""


def evaluate(
    name: str,
    config: Evaluation,
    subject: Subject,
    folder: Path,
    *,
    again: bool = False,
    found: Sequence[Metric] | None = None,
) -> Result:
    """Run an evaluation, or return what it found before with the same settings, weights and data; write it down.

    Metrics that were taken already, as times in turn with other sources, are given as `found`.
    """
    identity = identity_of(name, config, subject)
    known = None if again or found is not None or not subject.world.is_first else _read(folder / RESULTS, identity)
    known = subject.world.share(known)
    protocol = str(identity["protocol"])
    if known is not None:
        return Result(name, subject.name, protocol, known, folder, is_new=False)
    started = time.perf_counter()
    metrics = tuple(config.run(subject) if found is None else found)
    result = Result(name, subject.name, protocol, metrics, folder, is_new=True)
    if subject.world.is_first:
        seconds = round(time.perf_counter() - started, 1)
        facts = {"seconds": seconds, "environment": environment(world_size=subject.world.size)}
        write_down(result, {**identity, "load_report": str(subject.backbone.report), **facts})
    return result


def write_down(result: Result, facts: Mapping[str, Any]) -> None:
    """Write a result and the page about it; `facts` are its identity, what was loaded, and the environment."""
    document = {**facts, "source": result.source, "metrics": [asdict(metric) for metric in result.metrics]}
    keep(result.folder / RESULTS, (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode())
    keep(result.folder / PAGE, render(page_of(result, document)).encode())


def identity_of(name: str, config: Evaluation, subject: Subject) -> dict[str, Any]:
    """Return all that a result depends on; who does the work is not among it."""
    return {
        "format": FORMAT,
        "evaluation": name,
        "config": config.model_dump(mode="json", exclude={"workers"}),
        "weights": subject.digest,
        "protocol": config.protocol(subject),
        **config.inputs(subject),
    }


def place_of(home: Path, label: str, name: str, config: Evaluation, subject: Subject) -> Path:
    """Return the folder of a result: other settings, weights or data have another."""
    identity = json.dumps(identity_of(name, config, subject))
    return home / f"{label}-{hashlib.sha256(identity.encode()).hexdigest()[:6]}"


def table_of(results: Sequence[Result]) -> Table:
    """Return the metrics of one evaluation of several sources, side by side."""
    names = dict.fromkeys(metric.name for result in results for metric in result.metrics)
    found = [{metric.name: metric for metric in result.metrics} for result in results]
    rows = [(name, *(_said(each.get(name)) for each in found)) for name in names]
    notes = [
        f"{result.source}, {metric.name}: {metric.note}."
        for result in results
        for metric in result.metrics
        if metric.note
    ]
    return Table(results[0].evaluation, ("", *(result.source for result in results)), rows, " ".join(notes))


def sections_of(folder: Path) -> list[Section]:
    """Return what evaluations of a run found, for its page: those by one protocol together."""
    together: dict[tuple[str, str], list[Result]] = {}
    for path in sorted(folder.glob(f"evaluations/*/{RESULTS}")):
        try:
            result = result_of(path.parent)
        except (OSError, ValueError, KeyError, TypeError):
            log.warning("%s: is no result of an evaluation; left out of the page", path)
            continue
        together.setdefault((result.evaluation, result.protocol), []).append(result)
    sections: list[Section] = []
    for (name, protocol), results in together.items():
        sections += [Text(protocol, title=f"Evaluation: {name}"), table_of(results)]
    return sections


def result_of(folder: Path) -> Result:
    """Return what was written down in a folder."""
    document = json.loads((folder / RESULTS).read_bytes())
    metrics = tuple(_metric(each) for each in document["metrics"])
    name, source, protocol = (document[key] for key in ("evaluation", "source", "protocol"))
    return Result(name, source, protocol, metrics, folder, is_new=False)


def page_of(result: Result, document: Mapping[str, Any]) -> Page:
    """Return the page about an evaluation."""
    return Page(
        f"{result.evaluation} of {result.source}",
        "Numbers, and the protocol by which they were taken.",
        [
            table_of([result]),
            Text(result.protocol, title="Protocol"),
            Details("What was loaded", document["load_report"]),
            Details("All settings", json.dumps(document["config"], indent=2, ensure_ascii=False)),
            Details("Environment", json.dumps(document["environment"], indent=2, ensure_ascii=False)),
        ],
    )


def _said(metric: Metric | None) -> str:
    """Write a number with its interval and what it is over.

    >>> _said(Metric("top-1", 58.0, 1024, (54.9, 61.0)))
    '58.00 (54.90-61.00)'
    """
    if metric is None:
        return "–"
    value = f"{metric.value:.2f}" if abs(metric.value) < 1e6 else f"{metric.value:.4g}"
    return f"{value} ({metric.interval[0]:.2f}-{metric.interval[1]:.2f})" if metric.interval else value


def _read(path: Path, identity: dict[str, Any]) -> tuple[Metric, ...] | None:
    """Return the metrics of a file that is about just this; None where there is none, or it is about another."""
    try:
        document = json.loads(path.read_bytes())
        if any(document.get(key) != value for key, value in json.loads(json.dumps(identity)).items()):
            return None
        return tuple(_metric(each) for each in document["metrics"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _metric(values: dict[str, Any]) -> Metric:
    interval = values["interval"]
    note = values.get("note", "")
    return Metric(values["name"], values["value"], values["count"], tuple(interval) if interval else None, note)
