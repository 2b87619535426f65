"""Comparison of the robustness of several classifiers: metrics, counts per cell, and a page of tables and charts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from c2fmae.core.environment import collect_environment
from c2fmae.core.files import write_atomic
from c2fmae.core.json_file import write_json
from c2fmae.core.text import name_few, slugify
from c2fmae.eval.cache import compute_json_digest
from c2fmae.eval.results import (
    PAGE_FILE,
    RESULT_FORMAT,
    EvaluationResult,
    collect_notes,
    format_protocols,
    make_detail_sections,
    make_metrics_table,
)
from c2fmae.eval.robustness.accuracy_metrics import is_corruption_grid
from c2fmae.eval.robustness.class_matching import ClassMatching
from c2fmae.eval.robustness.config import RobustnessEvaluation
from c2fmae.eval.robustness.corruption_metrics import compute_cell_errors, is_official_imagenet_c
from c2fmae.eval.robustness.evaluation import RobustnessResult, describe_set_protocol, format_set_name
from c2fmae.eval.robustness.scores import TABLE_IV, compute_corruption_errors
from c2fmae.eval.robustness.tables import (
    PAPER_NOTE,
    build_cell_records,
    build_corruption_charts,
    build_corruption_table,
    build_effective_robustness_charts,
    build_paper_table,
    build_set_bar_chart,
    results_to_csv,
)
from c2fmae.report import Page, Section, Text, render_page

JSON_FILE, CSV_FILE = "robustness.json", "robustness.csv"


def write_comparison(
    results: Sequence[EvaluationResult], config: RobustnessEvaluation, output_dir: Path | None
) -> list[Path]:
    """Write the comparison of all models and return its files, the page first.

    The default directory below evaluations/ has a name that depends on the models, the sets and the settings.
    """
    details: list[RobustnessResult] = [result.details for result in results]
    sets = [predictions.shifted_set for predictions in details[0].set_predictions]
    identities = {shifted_set.name: shifted_set.identity for shifted_set in sets}
    if output_dir is None:
        weights = sorted(result.classifier.digest for result in details)
        digest = compute_json_digest([weights, identities, config.identity_settings()], length=6)
        models = name_few([result.classifier.source for result in details], "models")
        output_dir = Path("evaluations") / slugify("robustness", *models, "on", *config.set_labels(), digest)
    document = {
        "format": RESULT_FORMAT,
        "sets": {
            shifted_set.name: {
                "kind": shifted_set.suite,
                "self_made": shifted_set.creation_sentence,
                "notes": shifted_set.warnings,
                "identity": shifted_set.identity,
            }
            for shifted_set in sets
        },
        "models": {result.classifier.source: _model_record(result) for result in details},
        "table_iv": {"note": PAPER_NOTE, **{name: row._asdict() for name, row in TABLE_IV.items()}},
        "config": config.model_dump(mode="json"),
        "environment": collect_environment(),
    }
    write_json(output_dir / JSON_FILE, document)
    write_atomic(output_dir / CSV_FILE, results_to_csv(details).encode())
    write_atomic(output_dir / PAGE_FILE, render_page(_build_page(results, details, document)).encode())
    return [output_dir / name for name in (PAGE_FILE, JSON_FILE, CSV_FILE)]


def _build_page(
    results: Sequence[EvaluationResult], details: Sequence[RobustnessResult], document: Mapping[str, Any]
) -> Page:
    sections: list[Section] = [make_metrics_table("Robustness", results)]
    if notes := collect_notes(results):
        sections.append(Text("\n\n".join(notes), title="Notes"))
    sections += [build_set_bar_chart(details), *build_effective_robustness_charts(details), build_paper_table(details)]
    for set_index, predictions in enumerate(details[0].set_predictions):
        if is_corruption_grid(predictions.shifted_set):
            title = f"{format_set_name(predictions.shifted_set)}: error by corruption and severity"
            sections += [Text("", title=title), *build_corruption_charts(details, set_index)]
            sections.append(build_corruption_table(details, set_index))
    sections.append(Text("\n\n".join(format_protocols(results)), title="Protocol"))
    load_reports = "\n\n".join(result.classifier.load_report for result in details)
    return Page(
        "Robustness",
        "Accuracy of classifiers on images whose distribution differs from that of the training data.",
        [*sections, *make_detail_sections(load_reports, document)],
    )


def _model_record(result: RobustnessResult) -> dict[str, Any]:
    by_set = {predictions.shifted_set.name: predictions for predictions in result.set_predictions}
    return {
        "weights": result.classifier.digest,
        "protocol": {
            name: describe_set_protocol(result.classifier, predictions.shifted_set)
            for name, predictions in by_set.items()
        },
        "metrics": [metric.to_json() for metric in result.metrics],
        "corruption_errors": {
            name: compute_corruption_errors(compute_cell_errors(predictions))
            for name, predictions in by_set.items()
            if is_corruption_grid(predictions.shifted_set) and is_official_imagenet_c(predictions)
        },
        "classes": {name: _class_record(predictions.class_matching) for name, predictions in by_set.items()},
        "cells": {name: build_cell_records(predictions) for name, predictions in by_set.items()},
        "load_report": result.classifier.load_report,
    }


def _class_record(class_matching: ClassMatching) -> dict[str, object]:
    return {"asked": class_matching.num_requested, "missing": class_matching.missing_names}
