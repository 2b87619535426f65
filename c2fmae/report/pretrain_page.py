"""The page about a run: how it went, what it learned, by which settings."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from math import nan
from pathlib import Path
from typing import Any

import yaml

from c2fmae.report.charts import Curves, Points
from c2fmae.report.page import Details, Facts, Page, Picture, Section, Text

Row = Mapping[str, Any]

_RECONSTRUCTIONS = """\
Held-out scenes where there are some: the truth, the patches that the encoder saw, and what is predicted of the rest."""
_LOSSES = """\
Taken over hidden patches alone. Held out: the same on scenes that were not learned from, with as much hidden as at
the end of training."""
_NEXT = """\
`RUN` is the folder that this page lies in. To see what a photo alone tells the model:

    c2fmae view reconstruct RUN --visible rgb:all

To run the very same again:

    c2fmae pretrain RUN/config.yaml --out AGAIN"""
_FACTS = {
    "Method": "method.name",
    "Encoder": "method.encoder.name",
    "Decoder": "method.decoder.name",
    "Seen and predicted": "method.granularities",
    "Height, width": "method.image_size",
    "Masks": "method.masking.policy",
    "Trained on": "data.train",
    "Held out": "data.held_out",
}


def run_page(
    rows: Sequence[Row],
    config_yaml: str,
    environment: Mapping[str, Any],
    pictures: Sequence[Path],
    extra: Sequence[Section] = (),
    evaluations: Sequence[Section] = (),
) -> Page:
    """Return the page about what lies in a run's folder; `extra`, what was found with it, comes before the rest.

    Of the pictures, the first and the last are shown.
    """
    config = yaml.safe_load(config_yaml)
    sections: list[Section] = [Facts(_outcome(rows)), *extra]
    if pictures:
        sections.append(Text(_RECONSTRUCTIONS, title="What it makes of hidden patches"))
        sections += [Picture(path, _caption(path)) for path in dict.fromkeys([pictures[0], pictures[-1]])]
    sections += [Text(_LOSSES + _skipped(rows), title="Losses"), *_losses(rows)]
    sections += evaluations
    if schedule := _schedule(rows):
        sections += [Text("", title="Schedule"), *schedule]
    what = {name: _at(config, place) for name, place in _FACTS.items()}
    sections += [
        Text("", title="What was trained, and how"),
        *(
            Facts({name: _said(value) for name, value in facts.items() if value is not None})
            for facts in (what, config.get("training", {}))
        ),
        Details("All settings", config_yaml.strip()),
        Details("Environment", json.dumps(environment, indent=2, ensure_ascii=False)),
        Text(_NEXT, title="What to type next"),
    ]
    lead = config.get("title") or "How it was pre-trained, and what it makes of what it cannot see."
    return Page(config.get("name") or what["Method"] or "A run", lead, sections)


def _outcome(rows: Sequence[Row]) -> dict[str, str]:
    """Return how far the run got, and its losses before and after."""
    facts = {"Steps": f"{max((row['step'] for row in rows), default=0):,}"}
    for name, key in (("Loss", "loss"), ("Held-out loss", "held_out/loss")):
        if known := [y for _, y in _curve(rows, key) if y == y]:
            facts[name] = f"{known[0]:.4g} → {known[-1]:.4g}"
    return facts


def _skipped(rows: Sequence[Row]) -> str:
    reasons = Counter(str(row["skipped"]) for row in rows if "skipped" in row)
    said = ", ".join(f"{count} × {reason}" for reason, count in reasons.items())
    return f"\n\nSteps that were skipped, as gaps in the curves: {said}." if reasons else ""


def _losses(rows: Sequence[Row]) -> list[Curves]:
    """Return a chart for the sum and one for each head, training and held out together."""
    heads = dict.fromkeys(key.removeprefix("loss/") for row in rows for key in row if key.startswith("loss/"))
    charts = [_chart(rows, "Total", {"training": "loss", "held out": "held_out/loss"})]
    charts += [_chart(rows, head, {"training": f"loss/{head}", "held out": f"held_out/{head}"}) for head in heads]
    return charts if len(heads) > 1 else charts[:1]


def _schedule(rows: Sequence[Row]) -> list[Curves]:
    """Return charts of what the settings make of each step, and of what tells whether they are right."""
    valid = {key.removeprefix("valid/"): key for row in rows for key in row if key.startswith("valid/")}
    charts = [
        _chart(rows, "Learning rate", {"learning rate": "lr"}),
        _chart(rows, "Norm of the gradient", {"norm": "grad_norm"}, log=True),
        _chart(rows, "Curriculum of the masks", {"semantic, α": "alpha", "instance, β": "beta"}),
        _chart(rows, "Share of the hidden cells that is labelled", valid),
    ]
    return [chart for chart in charts if chart.series]


def _chart(rows: Sequence[Row], title: str, keys: Mapping[str, str], *, log: bool = False) -> Curves:
    curves = {name: _curve(rows, key) for name, key in keys.items()}
    return Curves(title, {name: curve for name, curve in curves.items() if curve}, log=log)


def _curve(rows: Sequence[Row], key: str) -> Points:
    """Return a metric by step; a gap where it was not finite, which files say as null."""
    return [(row["step"], nan if row[key] is None else row[key]) for row in rows if key in row]


def _caption(path: Path) -> str:
    step = re.fullmatch(r"step-(\d+)", path.stem)
    return f"After {int(step[1]):,} steps" if step else path.stem


def _at(tree: Any, place: str) -> Any:
    """Return the setting at a dotted path; None where there is none."""
    for key in place.split("."):
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def _said(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(_said, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
