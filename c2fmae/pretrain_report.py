"""The report page of a pre-training run: outcome, reconstructions, losses, schedules and settings."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

from c2fmae.config.pretrain import PretrainConfig
from c2fmae.core.files import read_text
from c2fmae.core.metric_columns import MetricColumns
from c2fmae.core.metric_rows import MetricRow, iterate_rows, read_rows
from c2fmae.core.run_dir import RunDir
from c2fmae.core.text import format_count
from c2fmae.core.yaml_file import parse_yaml
from c2fmae.eval.probes.online import DISPLAY_NAMES
from c2fmae.eval.results import make_result_sections
from c2fmae.report import Details, Figure, KeyValues, LineChart, Page, Section, Table, Text, render_page
from c2fmae.report.charts import chart_metrics
from c2fmae.report.speed import make_speed_sections

_RECONSTRUCTIONS_TEXT = """\
Held-out scenes, or training scenes if the run has no held-out data: the true maps, the visible patches, and the
prediction of the hidden patches."""
_LOSSES_TEXT = """\
Held out: the same losses on scenes that are never trained on; numbers that change in training, such as that of hidden
patches, are those of its end. A masked autoencoder's losses are averaged over hidden patches only."""
_COLLAPSE_TEXT = "Whether the features of different images still differ."
_COLLAPSE_MEASURES = {
    "feature_spread": "1 if they are spread out, 0 if they are equal.",
    "teacher_entropy": "1 if all prototypes are as likely, 0 if one has all.",
    "contrast_accuracy": "how often an image, or a patch, finds its own among all others.",
}
_PROBES_TEXT = """\
Accuracy on labelled images at several steps, from the encoder's frozen features of images alone: k-NN (20 neighbours)
and a linear classifier. Step 0 is the encoder before training. `c2fmae eval` evaluates it on complete sets."""
_NEXT_STEPS = """\
`RUN` is the directory of this page. {}:

    {}

Repeat this run from its config:

    c2fmae pretrain RUN/config.yaml --out OTHER"""
_CONFIG_KEYS = {
    "Method": "method.name",
    "Encoder": "method.encoder.name",
    "Decoder": "method.decoder.name",
    "Granularities": "method.granularities",
    "Image height, width": "method.image_size",
    "Masking": "method.masking.name",
    "Training data": "data.train",
    "Held-out data": "data.held_out",
}


def write_pretraining_report(run_dir: RunDir, extra_sections: Sequence[Section] = ()) -> None:
    """Write the report page of a run from the files in its directory."""
    page = build_pretrain_page(
        iterate_rows(run_dir.metrics),
        read_text(run_dir.config_path),
        run_dir.read_environment(),
        run_dir.list_figures(),
        extra_sections,
        make_result_sections(run_dir.path),
        read_rows(run_dir.timing) if run_dir.timing.exists() else (),
    )
    run_dir.write_text(run_dir.report.name, render_page(page))


def build_pretrain_page(
    rows: Iterable[MetricRow],
    config_yaml: str,
    environment: Mapping[str, Any],
    figures: Sequence[Path],
    extra_sections: Sequence[Section] = (),
    evaluation_sections: Sequence[Section] = (),
    timing_rows: Sequence[MetricRow] = (),
) -> Page:
    """Return the report page of a run; `extra_sections` come first, and only the first and last figure are shown."""
    config, metrics = PretrainConfig.migrate(parse_yaml(config_yaml, "config.yaml")), MetricColumns(rows)
    sections: list[Section] = [KeyValues(_outcome_values(metrics)), *extra_sections]
    if figures:
        sections.append(Text(_RECONSTRUCTIONS_TEXT, title="Reconstruction of hidden patches"))
        sections += [Figure(path, _figure_caption(path)) for path in dict.fromkeys([figures[0], figures[-1]])]
    sections += [Text(_LOSSES_TEXT + _describe_skipped_steps(metrics), title="Losses"), *_loss_charts(metrics)]
    sections += [*_collapse_sections(metrics), *_probe_sections(metrics, config), *evaluation_sections]
    if schedule := _schedule_charts(metrics):
        sections += [Text("", title="Schedule"), *schedule]
    sections += make_speed_sections(timing_rows, world_size=environment.get("world_size", 1))
    main_settings = {name: _config_value(config, key_path) for name, key_path in _CONFIG_KEYS.items()}
    sections += [
        Text("", title="Settings"),
        *(
            KeyValues({name: _format_config_value(value) for name, value in values.items() if value is not None})
            for values in (main_settings, config.get("training", {}))
        ),
        Details("Full config", config_yaml.strip()),
        Details("Environment", json.dumps(environment, indent=2, ensure_ascii=False)),
        Text(_describe_next_steps(config), title="Next steps"),
    ]
    summary = config.get("title") or "A pre-training run: its outcome, reconstructions, losses and settings."
    return Page(config.get("name") or main_settings["Method"] or "Pre-training", summary, sections)


def _outcome_values(metrics: MetricColumns) -> dict[str, str]:
    """Return the number of steps, and the first and last losses."""
    values = {"Steps": f"{metrics.last_step:,}"}
    for name, key in (("Loss", "loss"), ("Held-out loss", "held_out/loss")):
        if losses := metrics.finite_points(key):
            values[name] = f"{losses[0][1]:.4g} → {losses[-1][1]:.4g}"
    return values


def _describe_next_steps(config: Mapping[str, Any]) -> str:
    purpose, command = "Classify images with the encoder's features", "c2fmae eval knn RUN"
    if config.get("method", {}).get("kind", "masked") == "masked":
        purpose += ", and reconstruct the maps from the image alone"
        command += "\n    c2fmae view reconstruct RUN --visible rgb:all"
    return _NEXT_STEPS.format(purpose, command)


def _describe_skipped_steps(metrics: MetricColumns) -> str:
    reasons = metrics.count_texts("skipped")
    counts = ", ".join(f"{count} × {reason}" for reason, count in reasons.items())
    return f"\n\nSkipped steps, shown as gaps in the curves: {counts}." if reasons else ""


def _loss_charts(metrics: MetricColumns) -> list[LineChart]:
    """Return a chart of the total loss, and if there are several heads one of each head's loss."""
    heads = [key.removeprefix("loss/") for key in metrics.find_keys("loss/")]
    charts = [chart_metrics(metrics, "Total", {"training": "loss", "held out": "held_out/loss"})]
    charts += [
        chart_metrics(metrics, head, {"training": f"loss/{head}", "held out": f"held_out/{head}"}) for head in heads
    ]
    return charts if len(heads) > 1 else charts[:1]


def _collapse_sections(metrics: MetricColumns) -> list[Section]:
    """Return a chart of the measures of collapse that a two-branch method logs."""
    keys = {key: key for key in _COLLAPSE_MEASURES if metrics.finite_points(key)}
    if not keys:
        return []
    text = " ".join([_COLLAPSE_TEXT, *(f"`{key}`: {_COLLAPSE_MEASURES[key]}" for key in keys)])
    return [Text(text, title="Collapse"), chart_metrics(metrics, "Measures of collapse", keys)]


def _probe_sections(metrics: MetricColumns, config: Mapping[str, Any]) -> list[Section]:
    """Return a chart and a table of the accuracies of the probes during training, if there are any."""
    finite = {name: metrics.finite_points(key) for key, name in DISPLAY_NAMES.items()}
    if not any(finite.values()):
        return []
    text, settings = _PROBES_TEXT, _config_value(config, "watching.probes")
    if settings is not None:  # None if they were removed when the run was resumed
        data, num_train, num_test = (settings[key] for key in ("data", "train_samples", "test_samples"))
        counts = f"at most {num_train:,} images to fit to and {num_test:,} others to test on"
        text += f"\n\nData: `{_format_config_value(data)}`, {counts}."
    table_rows = [
        (name, *(f"{y:.1f} (step {step:,})" for step, y in (curve[0], max(curve, key=itemgetter(1)), curve[-1])))
        for name, curve in finite.items()
        if curve
    ]
    return [
        Text(text, title="Probes during training"),
        chart_metrics(metrics, "Top-1 accuracy, %", {name: key for key, name in DISPLAY_NAMES.items()}),
        Table("Top-1 accuracy of frozen features, %", ("probe", "first", "highest", "last"), table_rows),
    ]


def _schedule_charts(metrics: MetricColumns) -> list[LineChart]:
    """Return charts of what changes in the course of a run, and of the gradient norm."""
    valid = {key.removeprefix("valid/"): key for key in metrics.find_keys("valid/")}
    charts = [
        chart_metrics(metrics, "Learning rate", {"learning rate": "lr"}),
        chart_metrics(metrics, "Gradient norm", {"norm": "grad_norm"}, is_log=True),
        chart_metrics(metrics, "Height of training images", {"pixels": "image_height"}),
        chart_metrics(metrics, "Masking curriculum", {"semantic, α": "alpha", "instance, β": "beta"}),
        chart_metrics(metrics, "Labelled fraction of the hidden cells", valid),
    ]
    return [chart for chart in charts if chart.series]


def _figure_caption(path: Path) -> str:
    step = re.fullmatch(r"step-(\d+)", path.stem)
    return f"After {format_count(int(step[1]), 'step')}" if step else path.stem


def _config_value(config: Any, key_path: str) -> Any:
    """Return the setting at a dotted path, or None if there is none."""
    for key in key_path.split("."):
        config = config.get(key) if isinstance(config, Mapping) else None
    return config


def _format_config_value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return str(value.get("name"))
    if isinstance(value, list):
        return ", ".join(map(_format_config_value, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
