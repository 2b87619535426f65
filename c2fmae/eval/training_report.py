"""The page of a training on a backbone, from the files in its directory."""

from collections.abc import Mapping, Sequence

from c2fmae.core.files import read_text
from c2fmae.core.metric_rows import iterate_rows_from_end, read_rows
from c2fmae.core.run_dir import RunDir
from c2fmae.eval.results import make_result_sections
from c2fmae.report import Details, KeyValues, Page, Section, Text, render_page
from c2fmae.report.speed import make_speed_sections


def write_training_page(
    run_dir: RunDir,
    title: str,
    summary: str,
    key_values: Mapping[str, str],
    progress: str,
    charts: Sequence[Section],
    result_sections: Sequence[Section],
    next_steps: str,
) -> None:
    """Write the page of a run: values, charts of its progress, results, speed, settings and commands.

    `result_sections` follow the tables of all results of the run.
    """
    num_steps = next((row["step"] for row in iterate_rows_from_end(run_dir.metrics) if "step" in row), 0)
    sections: list[Section] = [
        KeyValues({"Steps": f"{num_steps:,}", **key_values}),
        Text(progress, title="Progress"),
        *charts,
        *make_result_sections(run_dir.path),
        *result_sections,
        *make_speed_sections(
            read_rows(run_dir.timing) if run_dir.timing.exists() else (),
            world_size=run_dir.read_environment().get("world_size", 1),
        ),
        Details("All settings", read_text(run_dir.config_path).strip()),
        Details("Environment", read_text(run_dir.environment_path).strip()),
        Text(next_steps, title="Next commands"),
    ]
    run_dir.write_text(run_dir.report.name, render_page(Page(title, summary, sections)))
