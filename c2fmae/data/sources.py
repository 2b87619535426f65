"""From what a user types to scenes: a folder, a shard, several of them, or a name such as `generated`."""

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from c2fmae.core.choice import Choice
from c2fmae.core.errors import UserError, did_you_mean
from c2fmae.core.granularity import GRANULARITIES
from c2fmae.core.registry import Registry
from c2fmae.data.combine import ConcatScenes, SubsetScenes
from c2fmae.data.folders import open_folder_tree
from c2fmae.data.generated import GeneratedScenes
from c2fmae.data.problems import Problem, raise_first_problem
from c2fmae.data.remote import download_shards, is_remote
from c2fmae.data.scenes import Scenes
from c2fmae.data.shards import open_shards
from c2fmae.data.tar_index import INDEX_SUFFIX

_MAX_NAMES_TO_SUGGEST_FROM = (
    10_000  # names among which to look for the nearest: among a million it takes most of a minute
)

DataSource = str | Path | Choice | Sequence[str | Path | Choice]

DATASETS: Registry[Callable[..., Scenes]] = Registry("dataset")
DATASETS.register("generated")(GeneratedScenes)


class _RegisteredDataset(Choice):
    """A registered data set that is opened by its name and keyword arguments."""

    @classmethod
    def registry(cls) -> Registry[Callable[..., Scenes]]:
        return DATASETS


def open_scenes(
    source: DataSource,
    *,
    granularities: Sequence[str] | None = None,
    keys: Collection[str] | None = None,
    folders: Mapping[str, str] | None = None,
    **options: object,
) -> Scenes:
    """Open scenes, all problems that can be seen without decoding refused.

    A source is a folder tree, a flat folder of photos, a `.tar`, a folder of shards of one set, a pattern such as
    `voc/train-*.tar`, a URL of shards, a registered name, or a list of these, whose label spaces must agree.

    `granularities`: those that are needed; by default all that the data has.
    `keys`: use these samples alone, and let the problems of others be.
    `folders`: names of a tree's folders, where they are not those of the granularities.
    `options`: for a registered name; `generated` takes size, length, seed, …
    """
    scenes, problems = inspect_scenes(source, granularities=granularities, folders=folders, **options)
    if keys is None or scenes is None:
        raise_first_problem(problems)
    else:
        row_by_key = {key: place for place, key in enumerate(scenes.keys)}
        missing = sorted(set(keys) - row_by_key.keys())
        if missing:
            hint = did_you_mean(missing[0], row_by_key) if len(row_by_key) <= _MAX_NAMES_TO_SUGGEST_FROM else ""
            raise UserError(
                f"{_format_source(source)}: {len(missing)} of the {len(set(keys))} chosen keys are not there whole, "
                f"the first is {missing[0]!r}. {hint}".rstrip()
            )
        scenes = SubsetScenes(scenes, np.array(sorted(row_by_key[key] for key in set(keys)), np.int64))
    if scenes is None or not len(scenes):
        raise UserError(f"{_format_source(source)}: no scenes in it")
    return scenes


def inspect_scenes(
    source: DataSource,
    *,
    granularities: Sequence[str] | None = None,
    folders: Mapping[str, str] | None = None,
    **options: object,
) -> tuple[Scenes | None, tuple[Problem, ...]]:
    """Open what is whole of a source, and list what is not."""
    for name in granularities or ():
        GRANULARITIES.get(name)
    if isinstance(source, str) and source in DATASETS and not Path(source).exists():
        values = {"name": source, "options": options}
        source, options = _RegisteredDataset.from_dict(values, source=source), {}
    if options:
        raise UserError(
            f"{_format_source(source)}: takes no setting {next(iter(options))!r}, as a registered data set may"
        )
    if isinstance(source, Choice):
        scenes: Scenes = source.build()
        return (SubsetScenes(scenes, granularities=tuple(granularities)) if granularities else scenes), ()
    if not isinstance(source, str | Path):
        opened = [inspect_scenes(one, granularities=granularities, folders=folders) for one in source]
        opened_sources = [scenes for scenes, _ in opened if scenes is not None]
        return ConcatScenes(opened_sources) if opened_sources else None, tuple(
            problem for _, problems in opened for problem in problems
        )
    found = _resolve_source(source)
    if isinstance(found, Path):
        return open_folder_tree(found, granularities, folders or {})
    return open_shards(found, granularities)


def _resolve_source(source: str | Path) -> Path | list[Path]:
    """Return the root of a folder tree, or shards."""
    if is_remote(str(source)):
        shards = download_shards(str(source))
        return shards if _is_pattern(str(source)) else _check_single_set(str(source), shards)
    path = Path(source)
    if path.is_dir():
        return _check_single_set(path, sorted(path.glob("*.tar"))) or path
    if path.exists():
        if ".tar" not in path.suffixes:
            raise UserError(f"{path}: is not a tar shard. {_expected_sources()}")
        return [path]
    found = sorted(path.parent.glob(path.name)) if _is_pattern(path.name) else []
    shards = [shard for shard in found if not shard.name.endswith(INDEX_SUFFIX)]  # those we made ourselves
    if not shards:
        raise UserError(f"{path}: does not exist. {did_you_mean(str(source), DATASETS) or _expected_sources()}")
    for shard in shards:
        if shard.suffix != ".tar":
            raise UserError(f"{path}: matches {shard.name}, which is not a tar shard. {_expected_sources()}")
    return shards


def _check_single_set(folder: str | Path, shards: list[Path]) -> list[Path]:
    """Refuse shards of several sets: train and val often lie side by side, and hardly ever are to be mixed."""
    sets = Counter(re.sub(r"[-_]?\d*$", "", shard.stem) for shard in shards)
    if len(sets) > 1:
        found = ", ".join(f"{name} ({count})" for name, count in sets.items())
        example = next((name for name in sets if "train" in name), next(iter(sets)))
        raise UserError(f"{folder}: shards of several sets: {found}. Name one, as in {folder}/{example}*.tar")
    return shards


def _is_pattern(name: str) -> bool:
    return any(c in name for c in "*?[")


def _expected_sources() -> str:
    return f"Give a folder, a .tar shard, a pattern of shards, or a name: {', '.join(DATASETS)}"


def _format_source(source: DataSource) -> str:
    if isinstance(source, Choice):
        return source.name
    return str(source) if isinstance(source, str | Path) else ", ".join(map(_format_source, source))
