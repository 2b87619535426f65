"""The config of a run: its problems, the data that it names, and whether plug-ins that it uses are installed."""

from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from c2fmae.config.data import DataSourceOption
from c2fmae.core.errors import UserError
from c2fmae.core.experiment_config import ExperimentConfig, RunKind
from c2fmae.core.registry import list_registries
from c2fmae.core.run_dir import RunDir
from c2fmae.core.run_info import read_run_info
from c2fmae.data.objects.find import is_coco_json, is_voc_list
from c2fmae.data.remote import is_remote
from c2fmae.data.sources import resolve_source
from c2fmae.eval.classification.config import FinetuneConfig
from c2fmae.eval.detection.config import DetectConfig
from c2fmae.eval.segmentation.config import SegmentConfig
from c2fmae.recipes.config import RecipeConfig

_DATA_KEYS = ("train", "held_out", "test")


_CONFIG_CLASSES: dict[RunKind, type[ExperimentConfig]] = {
    "pretraining": RecipeConfig,
    "finetuning": FinetuneConfig,
    "segmentation": SegmentConfig,
    "detection": DetectConfig,
}


def get_config_class(path: Path) -> type[ExperimentConfig]:
    """Return the class of a run's config."""
    return _CONFIG_CLASSES[read_run_info(path).kind]


def read_run_config(run_dir: RunDir) -> tuple[ExperimentConfig | None, list[str]]:
    """Return the config of a run and no problems; or None and all problems of its file."""
    path = run_dir.config_path
    try:
        return get_config_class(run_dir.path).from_yaml(path), []
    except UserError as error:
        heading, *lines = str(error).splitlines()
        environment = run_dir.read_environment()
        problems = [f"{path}: {line.strip()}" for line in lines] or [heading]
        return None, [f"{problem.rstrip('.')}. {_suggest_fix(problem, environment)}" for problem in problems]


def _suggest_fix(problem: str, environment: Mapping[str, Any]) -> str:
    """Return the fix of a problem: restore the setting, or install the package that registered an unknown name."""
    unknown = [registry.kind for registry in list_registries() if f"no {registry.kind} named " in problem]
    recorded = environment.get("plugins")
    for package, names_by_kind in recorded.items() if isinstance(recorded, Mapping) else ():
        if any(f"{name!r}" in problem for kind in unknown for name in names_by_kind.get(kind, ())):
            state = "is installed, but does not register it any more" if _is_installed(package) else "is not installed"
            return f"The package {package} registered it for this run and {state}. Run: pip install {package}"
    if unknown and "Did you mean" not in problem:
        return "No installed plug-in registers it either. Install the package that does, or restore the setting"
    return "Restore the setting"


def _is_installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def list_missing_data(config: ExperimentConfig) -> dict[str, str]:
    """Return an error message for each source of data that is not at its path, by its key. URLs are not checked."""
    data = getattr(config, "data", None)
    messages = {}
    for key in _DATA_KEYS:
        for source in _list_paths(getattr(data, key, None)):
            try:
                if not (is_coco_json(Path(source)) or is_voc_list(Path(source))):
                    resolve_source(source)
            except UserError as error:
                messages[f"data.{key}"] = str(error)
    return messages


def _list_paths(source: DataSourceOption | float | None) -> Iterator[str]:
    if isinstance(source, str) and not is_remote(source):
        yield source
    elif isinstance(source, tuple):
        for part in source:
            yield from _list_paths(part)
