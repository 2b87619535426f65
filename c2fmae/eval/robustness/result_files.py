"""What robustness found, written down: for each model as other evaluations are, and for all of them together."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from c2fmae.core.environment import collect_environment
from c2fmae.core.files import write_atomic
from c2fmae.eval.results import (
    PAGE_FILE,
    RESULT_FORMAT,
    EvaluationResult,
    collect_notes,
    make_metrics_table,
    save_result,
)
from c2fmae.eval.robustness.accuracy_metrics import ALL_CLASSES, SetPredictions, is_corruption_grid
from c2fmae.eval.robustness.class_matching import ClassMatching
from c2fmae.eval.robustness.corruption_metrics import compute_cell_errors, is_official_imagenet_c
from c2fmae.eval.robustness.evaluation import RobustnessConfig, RobustnessResult, choose_open_classes, format_set_name
from c2fmae.eval.robustness.scores import TABLE_IV, compute_corruption_errors
from c2fmae.eval.robustness.tables import (
    PAPER_NOTE,
    build_cell_records,
    build_corruption_charts,
    build_corruption_table,
    build_paper_table,
    build_set_bar_chart,
    results_to_csv,
)
from c2fmae.report import Details, Page, Section, Text, render_page

ROBUSTNESS_EVALUATION = "robustness"
JSON_FILE, CSV_FILE = f"{ROBUSTNESS_EVALUATION}.json", f"{ROBUSTNESS_EVALUATION}.csv"


def describe_set_protocol(set_predictions: SetPredictions) -> str:
    """Say how a classifier was asked about a set."""
    shifted_set, classifier = set_predictions.shifted_set, set_predictions.classifier
    classes = len(set_predictions.columns)
    open_classes = choose_open_classes(shifted_set)
    if open_classes == ALL_CLASSES:
        choice_text = f"the highest of all {classes:,} logits"
    else:
        choice_text = f"the highest of the logits of the set's {classes:,} classes ({open_classes}); all logits apart"
    view_text = (
        f"photos as they are, to {_format_size(classifier.image_size)} only if they are of another size"
        if shifted_set.is_cropped
        else str(classifier.view)
    )
    origin_text = (
        f" {shifted_set.creation_sentence[:1].upper()}{shifted_set.creation_sentence[1:]}."
        if shifted_set.creation_sentence
        else ""
    )
    return f"{format_set_name(shifted_set)}: {choice_text}; {view_text}; every photo counts alike.{origin_text}"


def describe_robustness_protocol(result: RobustnessResult) -> str:
    """Say how a classifier was asked about all sets."""
    set_protocols = " ".join(describe_set_protocol(answers) for answers in result.set_predictions)
    return (
        "Classes are matched by WordNet id, or by name where neither side has any, never by their order. "
        f"{set_protocols} Clean photos are shown in the model's own view, beside ImageNet-C cut as it is (the "
        "central 87.5 %), "
        "with the same logits open; those of the same classes count, and the drop is in points. "
        "mCE is the mean over the 15 corruptions of the error's sum over severities by AlexNet's; mean error is "
        "divided by nothing. Calibration error: 15 bins of equal width, of the confidence among the open logits. "
        "Intervals are 95 %: Wilson's of accuracies; of means over cells a normal one over photos, each "
        "with all its corruptions, as they are the same in all cells."
    )


def write_model_result(
    result: RobustnessResult, set_identities: Mapping[str, str], config: RobustnessConfig, evaluations_dir: Path
) -> EvaluationResult:
    """Write down what was found for one model, where its page will find it; `set_identities` are identities by name."""
    identity = {
        "weights": result.classifier.digest,
        "config": _result_settings(config),
        "sets": dict(set_identities),
        "protocol": describe_robustness_protocol(result),
    }
    result_dir = evaluations_dir / f"{ROBUSTNESS_EVALUATION}-{_short_digest(identity)}"
    evaluation_result = EvaluationResult(
        ROBUSTNESS_EVALUATION,
        result.classifier.source,
        describe_robustness_protocol(result),
        result.metrics,
        result_dir,
        is_new=True,
    )
    metadata = {"load_report": result.classifier.load_report, "environment": collect_environment()}
    save_result(
        evaluation_result, {"format": RESULT_FORMAT, "evaluation": ROBUSTNESS_EVALUATION, **identity, **metadata}
    )
    return evaluation_result


def write_comparison(
    results: Sequence[RobustnessResult], set_identities: Mapping[str, str], config: RobustnessConfig, output_dir: Path
) -> None:
    """Write down what was found for all models together: numbers, counts by cell, and a page of tables and charts."""
    document = {
        "format": RESULT_FORMAT,
        "sets": {
            answers.shifted_set.name: {
                "kind": answers.shifted_set.suite,
                "self_made": answers.shifted_set.creation_sentence,
                "notes": answers.shifted_set.warnings,
            }
            | {"identity": set_identities[answers.shifted_set.name]}
            for answers in results[0].set_predictions
        },
        "models": {each.classifier.source: _model_record(each) for each in results},
        "table_iv": {"note": PAPER_NOTE, **{name: row._asdict() for name, row in TABLE_IV.items()}},
        "config": config.model_dump(mode="json"),
        "environment": collect_environment(),
    }
    write_atomic(output_dir / JSON_FILE, _json_bytes(document), is_shared=True)
    write_atomic(output_dir / CSV_FILE, results_to_csv(results).encode(), is_shared=True)
    write_atomic(
        output_dir / PAGE_FILE, render_page(_build_comparison_page(results, document)).encode(), is_shared=True
    )


def default_output_dir(
    results: Sequence[RobustnessResult], set_identities: Mapping[str, str], config: RobustnessConfig
) -> Path:
    """Return where results of several models go together: other models, sets or settings have another folder."""
    identity = [sorted(each.classifier.digest for each in results), dict(set_identities), _result_settings(config)]
    return Path("evaluations") / f"{ROBUSTNESS_EVALUATION}-{_short_digest(identity)}"


def _result_settings(config: RobustnessConfig) -> dict[str, Any]:
    """Return what numbers may depend on."""
    return config.model_dump(mode="json", exclude={"workers", "batch_size"})


def _build_comparison_page(results: Sequence[RobustnessResult], document: Mapping[str, Any]) -> Page:
    columns = [(each.classifier.source, each.metrics) for each in results]
    note_lines = collect_notes(columns)
    sections: list[Section] = [make_metrics_table("Robustness", columns)]
    if note_lines:
        sections.append(Text("\n\n".join(note_lines), title="To be known beside the numbers"))
    sections += [build_set_bar_chart(results), build_paper_table(results)]
    for set_index, answers in enumerate(results[0].set_predictions):
        if is_corruption_grid(answers.shifted_set):
            sections += [Text("", title=f"{format_set_name(answers.shifted_set)}: error by corruption and severity")]
            sections += [*build_corruption_charts(results, set_index), build_corruption_table(results, set_index)]
    protocols: dict[str, list[str]] = {}
    for each in results:
        protocols.setdefault(describe_robustness_protocol(each), []).append(each.classifier.source)
    protocol_lines = [f"{', '.join(sources)}: {protocol}" for protocol, sources in protocols.items()]
    load_reports = "\n\n".join(each.classifier.load_report for each in results)
    return Page(
        "Robustness",
        "What is left of a classifier's accuracy on photos of another kind than it learned from.",
        [
            *sections,
            Text("\n\n".join(protocol_lines), title="Protocol"),
            Details("What was loaded", load_reports),
            Details("All settings", json.dumps(document["config"], indent=2, ensure_ascii=False)),
            Details("Environment", json.dumps(document["environment"], indent=2, ensure_ascii=False)),
        ],
    )


def _model_record(result: RobustnessResult) -> dict[str, Any]:
    return {
        "weights": result.classifier.digest,
        "protocol": {answers.shifted_set.name: describe_set_protocol(answers) for answers in result.set_predictions},
        "metrics": [metric.to_json() for metric in result.metrics],
        "corruption_errors": {
            answers.shifted_set.name: compute_corruption_errors(compute_cell_errors(answers))
            for answers in result.set_predictions
            if is_corruption_grid(answers.shifted_set) and is_official_imagenet_c(answers)
        },
        "classes": {
            answers.shifted_set.name: _class_record(answers.class_matching) for answers in result.set_predictions
        },
        "cells": {answers.shifted_set.name: build_cell_records(answers) for answers in result.set_predictions},
        "load_report": result.classifier.load_report,
    }


def _class_record(class_matching: ClassMatching) -> dict[str, object]:
    return {"asked": class_matching.num_requested, "missing": class_matching.missing_names}


def _format_size(size: tuple[int, int]) -> str:
    return f"{size[0]}×{size[1]}"


def _short_digest(document: object) -> str:
    return hashlib.sha256(json.dumps(document).encode()).hexdigest()[:6]


def _json_bytes(document: object) -> bytes:
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()
