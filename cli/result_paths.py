"""Where results about sources go, and the pages of runs that show them."""

import re
from pathlib import Path


def results_dir(source: str, out: Path | None) -> Path:
    """Return where results about a source go: a run's lie in its folder."""
    if out is not None:
        return out
    is_run = (Path(source) / "config.yaml").is_file()
    return Path(source) / "evaluations" if is_run else Path("evaluations") / slugify(source)


def slugify(*texts: str) -> str:
    """Return words as a name for a folder."""
    parts = [re.sub(r"[^A-Za-z0-9.]+", "-", Path(word).name if "/" in word else word).strip("-.") for word in texts]
    return "-".join(part for part in parts if part)


def update_run_reports(sources: list[str]) -> None:
    """Write the pages of runs anew, with what was found."""
    from c2fmae.core.run_dir import RunDir
    from c2fmae.eval.classification import result
    from c2fmae.eval.classification.config import is_finetuned
    from c2fmae.pretrain_report import write_pretraining_report

    for source in sources:
        if (Path(source) / "metrics.jsonl").is_file():
            write_page = result.write_finetune_report if is_finetuned(Path(source)) else write_pretraining_report
            write_page(RunDir(Path(source)))
            print(f"wrote {Path(source) / 'report.html'}, the run's page, with these numbers")
