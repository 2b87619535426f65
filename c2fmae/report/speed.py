"""The section about the speed of a run."""

from collections.abc import Mapping, Sequence
from typing import Any

from c2fmae.core.loading_speed import STAGES, summarise_loading
from c2fmae.core.metric_columns import MetricColumns
from c2fmae.report.charts import LineChart, chart_metrics
from c2fmae.report.page import Section, Text

_EXPLANATION = """\
Means since the previous point; times of loading are those of one of its processes. What limits the run follows from the
mean of all points but the first."""


def make_speed_sections(timing_rows: Sequence[Mapping[str, Any]], *, world_size: int) -> list[Section]:
    """Return charts of speed, waiting and the stages of loading, and what limits the run; nothing without rows."""
    if not timing_rows:
        return []
    loading = summarise_loading(timing_rows, world_size=world_size)
    columns = MetricColumns(timing_rows)
    stages = {name: f"{stage}_ms" for stage, name in STAGES.items() if columns.points(f"{stage}_ms")[:, 1].any()}
    waiting = columns.points("waited") * (1, 100)
    charts = [
        chart_metrics(columns, "Samples per second", {"samples/s": "samples_per_second"}),
        LineChart("Waiting for data, % of the time", {"waiting": waiting} if len(waiting) else {}),
        chart_metrics(columns, "Loading of a sample, ms", stages),
    ]
    text = "\n\n".join([*([loading.describe()] if loading else []), _EXPLANATION])
    return [Text(text, title="Speed"), *(chart for chart in charts if chart.series)]
