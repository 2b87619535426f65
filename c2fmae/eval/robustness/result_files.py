"""What robustness found, written down: for each model as other evaluations are, and for all of them together."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from c2fmae.core.environment import environment
from c2fmae.eval.keeping import keep
from c2fmae.eval.results import FORMAT, PAGE, Result, write_down
from c2fmae.eval.robustness.accuracy_metrics import TOP_1, Answers, is_grid
from c2fmae.eval.robustness.class_matching import Matched
from c2fmae.eval.robustness.corruption_metrics import errors_of, is_imagenet_c
from c2fmae.eval.robustness.evaluation import Found, RobustnessConfig, own_number, shown_name
from c2fmae.eval.robustness.scores import TABLE_IV, corruption_errors
from c2fmae.eval.robustness.tables import (
    PAPER,
    as_csv,
    cell_facts,
    corruption_charts,
    corruption_table,
    four_table,
    notes,
    numbers_table,
    set_bars,
)
from c2fmae.report import Details, Page, Section, Text, render

NAME = "robustness"
JSON, CSV = f"{NAME}.json", f"{NAME}.csv"


def set_protocol(answers: Answers) -> str:
    """Say how a classifier was asked about a set."""
    of, entrant = answers.of, answers.entrant
    classes = len(answers.columns)
    if own_number(of) == TOP_1:
        asked = f"the highest of all {classes:,} logits"
    else:
        asked = f"the highest of the logits of the set's {classes:,} classes ({own_number(of)}); all logits apart"
    way = (
        f"photos as they are, to {_size(entrant.size)} only if they are of another size"
        if of.is_cut
        else str(entrant.view)
    )
    made = f" {of.self_made[:1].upper()}{of.self_made[1:]}." if of.self_made else ""
    return f"{shown_name(of)}: {asked}; {way}; every photo counts alike.{made}"


def protocol_of(found: Found) -> str:
    """Say how a classifier was asked about all sets."""
    ways = " ".join(set_protocol(answers) for answers in found.answers)
    return (
        "Classes are matched by WordNet id, or by name where neither side has any, never by their order. "
        f"{ways} Clean photos are shown in the model's own view, beside ImageNet-C cut as it is (the central 87.5 %), "
        "with the same logits open; those of the same classes count, and the drop is in points. "
        "mCE is the mean over the 15 corruptions of the error's sum over severities by AlexNet's; mean error is "
        "divided by nothing. Calibration error: 15 bins of equal width, of the confidence among the open logits. "
        "Intervals are 95 %: Wilson's of accuracies; of means over cells a normal one over photos, each "
        "with all its corruptions, as they are the same in all cells."
    )


def write_model(found: Found, sets: Mapping[str, str], config: RobustnessConfig, home: Path) -> Result:
    """Write down what was found for one model, where its page will find it; `sets` are identities by name."""
    what = {
        "weights": found.entrant.digest,
        "config": _settings(config),
        "sets": dict(sets),
        "protocol": protocol_of(found),
    }
    folder = home / f"{NAME}-{_short(what)}"
    result = Result(NAME, found.entrant.source, protocol_of(found), found.metrics, folder, is_new=True)
    facts = {"load_report": found.entrant.report, "environment": environment()}
    write_down(result, {"format": FORMAT, "evaluation": NAME, **what, **facts})
    return result


def write_all(found: Sequence[Found], sets: Mapping[str, str], config: RobustnessConfig, folder: Path) -> None:
    """Write down what was found for all models together: numbers, counts by cell, and a page of tables and charts."""
    document = {
        "format": FORMAT,
        "sets": {
            answers.of.name: {"kind": answers.of.kind, "self_made": answers.of.self_made, "notes": answers.of.notes}
            | {"identity": sets[answers.of.name]}
            for answers in found[0].answers
        },
        "models": {each.entrant.source: _facts(each) for each in found},
        "table_iv": {"note": PAPER, **{name: row._asdict() for name, row in TABLE_IV.items()}},
        "config": config.model_dump(mode="json"),
        "environment": environment(),
    }
    keep(folder / JSON, _json(document))
    keep(folder / CSV, as_csv(found).encode())
    keep(folder / PAGE, render(_page(found, document)).encode())


def default_folder(found: Sequence[Found], sets: Mapping[str, str], config: RobustnessConfig) -> Path:
    """Return where results of several models go together: other models, sets or settings have another folder."""
    what = [sorted(each.entrant.digest for each in found), dict(sets), _settings(config)]
    return Path("evaluations") / f"{NAME}-{_short(what)}"


def _settings(config: RobustnessConfig) -> dict[str, Any]:
    """Return what numbers may depend on."""
    return config.model_dump(mode="json", exclude={"workers", "batch_size"})


def _page(found: Sequence[Found], document: Mapping[str, Any]) -> Page:
    said = notes(found)
    sections: list[Section] = [numbers_table(found)]
    if said:
        sections.append(Text("\n\n".join(said), title="To be known beside the numbers"))
    sections += [set_bars(found), four_table(found)]
    for place, answers in enumerate(found[0].answers):
        if is_grid(answers.of):
            sections += [Text("", title=f"{shown_name(answers.of)}: error by corruption and severity")]
            sections += [*corruption_charts(found, place), corruption_table(found, place)]
    protocols: dict[str, list[str]] = {}
    for each in found:
        protocols.setdefault(protocol_of(each), []).append(each.entrant.source)
    text = [f"{', '.join(who)}: {protocol}" for protocol, who in protocols.items()]
    loaded = "\n\n".join(each.entrant.report for each in found)
    return Page(
        "Robustness",
        "What is left of a classifier's accuracy on photos of another kind than it learned from.",
        [
            *sections,
            Text("\n\n".join(text), title="Protocol"),
            Details("What was loaded", loaded),
            Details("All settings", json.dumps(document["config"], indent=2, ensure_ascii=False)),
            Details("Environment", json.dumps(document["environment"], indent=2, ensure_ascii=False)),
        ],
    )


def _facts(found: Found) -> dict[str, Any]:
    return {
        "weights": found.entrant.digest,
        "protocol": {answers.of.name: set_protocol(answers) for answers in found.answers},
        "metrics": [asdict(metric) for metric in found.metrics],
        "corruption_errors": {
            answers.of.name: corruption_errors(errors_of(answers))
            for answers in found.answers
            if is_grid(answers.of) and is_imagenet_c(answers)
        },
        "classes": {answers.of.name: _classes(answers.matched) for answers in found.answers},
        "cells": {answers.of.name: cell_facts(answers) for answers in found.answers},
        "load_report": found.entrant.report,
    }


def _classes(matched: Matched) -> dict[str, object]:
    return {"asked": matched.num_asked, "missing": matched.missing}


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}×{size[1]}"


def _short(what: object) -> str:
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:6]


def _json(document: object) -> bytes:
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()
