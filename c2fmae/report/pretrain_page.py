"""The page about a run: how it went, what it learned, by which settings."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from math import nan
from pathlib import Path
from typing import Any

import yaml

from c2fmae.report.charts import LineChart, Points
from c2fmae.report.page import Details, Figure, KeyValues, Page, Section, Text

MetricsRow = Mapping[str, Any]

_RECONSTRUCTIONS_TEXT = """\
Held-out scenes where there are some: the truth, the patches that the encoder saw, and what is predicted of the rest."""
_LOSSES_TEXT = """\
Taken over hidden patches alone. Held out: the same on scenes that were not learned from, with as much hidden as at
the end of training."""
_PRETRAIN_NEXT_STEPS = """\
`RUN` is the folder that this page lies in. To see what a photo alone tells the model:

    c2fmae view reconstruct RUN --visible rgb:all

To run the very same again:

    c2fmae pretrain RUN/config.yaml --out AGAIN"""
_CONFIG_KEYS = {
    "Method": "method.name",
    "Encoder": "method.encoder.name",
    "Decoder": "method.decoder.name",
    "Seen and predicted": "method.granularities",
    "Height, width": "method.image_size",
    "Masks": "method.masking.policy",
    "Trained on": "data.train",
    "Held out": "data.held_out",
}


def build_pretrain_page(
    rows: Sequence[MetricsRow],
    config_yaml: str,
    environment: Mapping[str, Any],
    figures: Sequence[Path],
    extra_sections: Sequence[Section] = (),
    evaluation_sections: Sequence[Section] = (),
) -> Page:
    """Return the report page of a run directory; `extra_sections` come before the rest.

    Of the pictures, the first and the last are shown.
    """
    config = yaml.safe_load(config_yaml)
    sections: list[Section] = [KeyValues(_outcome_values(rows)), *extra_sections]
    if figures:
        sections.append(Text(_RECONSTRUCTIONS_TEXT, title="What it makes of hidden patches"))
        sections += [Figure(path, _figure_caption(path)) for path in dict.fromkeys([figures[0], figures[-1]])]
    sections += [Text(_LOSSES_TEXT + _describe_skipped_steps(rows), title="Losses"), *_loss_charts(rows)]
    sections += evaluation_sections
    if schedule := _schedule_charts(rows):
        sections += [Text("", title="Schedule"), *schedule]
    trained = {name: _config_value(config, place) for name, place in _CONFIG_KEYS.items()}
    sections += [
        Text("", title="What was trained, and how"),
        *(
            KeyValues({name: _format_config_value(value) for name, value in facts.items() if value is not None})
            for facts in (trained, config.get("training", {}))
        ),
        Details("All settings", config_yaml.strip()),
        Details("Environment", json.dumps(environment, indent=2, ensure_ascii=False)),
        Text(_PRETRAIN_NEXT_STEPS, title="What to type next"),
    ]
    lead = config.get("title") or "How it was pre-trained, and what it makes of what it cannot see."
    return Page(config.get("name") or trained["Method"] or "A run", lead, sections)


def _outcome_values(rows: Sequence[MetricsRow]) -> dict[str, str]:
    """Return how far the run got, and its losses before and after."""
    key_values = {"Steps": f"{max((row['step'] for row in rows), default=0):,}"}
    for name, key in (("Loss", "loss"), ("Held-out loss", "held_out/loss")):
        if losses := [y for _, y in _metric_points(rows, key) if y == y]:
            key_values[name] = f"{losses[0]:.4g} → {losses[-1]:.4g}"
    return key_values


def _describe_skipped_steps(rows: Sequence[MetricsRow]) -> str:
    reasons = Counter(str(row["skipped"]) for row in rows if "skipped" in row)
    listed_reasons = ", ".join(f"{count} × {reason}" for reason, count in reasons.items())
    return f"\n\nSteps that were skipped, as gaps in the curves: {listed_reasons}." if reasons else ""


def _loss_charts(rows: Sequence[MetricsRow]) -> list[LineChart]:
    """Return a chart for the sum and one for each head, training and held out together."""
    heads = dict.fromkeys(key.removeprefix("loss/") for row in rows for key in row if key.startswith("loss/"))
    charts = [_metric_chart(rows, "Total", {"training": "loss", "held out": "held_out/loss"})]
    charts += [
        _metric_chart(rows, head, {"training": f"loss/{head}", "held out": f"held_out/{head}"}) for head in heads
    ]
    return charts if len(heads) > 1 else charts[:1]


def _schedule_charts(rows: Sequence[MetricsRow]) -> list[LineChart]:
    """Return charts of what the settings make of each step, and of what tells whether they are right."""
    valid = {key.removeprefix("valid/"): key for row in rows for key in row if key.startswith("valid/")}
    charts = [
        _metric_chart(rows, "Learning rate", {"learning rate": "lr"}),
        _metric_chart(rows, "Norm of the gradient", {"norm": "grad_norm"}, is_log=True),
        _metric_chart(rows, "Curriculum of the masks", {"semantic, α": "alpha", "instance, β": "beta"}),
        _metric_chart(rows, "Share of the hidden cells that is labelled", valid),
    ]
    return [chart for chart in charts if chart.series]


def _metric_chart(
    rows: Sequence[MetricsRow], title: str, keys: Mapping[str, str], *, is_log: bool = False
) -> LineChart:
    curves = {name: _metric_points(rows, key) for name, key in keys.items()}
    return LineChart(title, {name: curve for name, curve in curves.items() if curve}, is_log=is_log)


def _metric_points(rows: Sequence[MetricsRow], key: str) -> Points:
    """Return a metric by step; a gap where it was not finite, which files say as null."""
    return [(row["step"], nan if row[key] is None else row[key]) for row in rows if key in row]


def _figure_caption(path: Path) -> str:
    step = re.fullmatch(r"step-(\d+)", path.stem)
    return f"After {int(step[1]):,} steps" if step else path.stem


def _config_value(config: Any, key_path: str) -> Any:
    """Return the setting at a dotted path; None where there is none."""
    for key in key_path.split("."):
        config = config.get(key) if isinstance(config, Mapping) else None
    return config


def _format_config_value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(_format_config_value, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
