"""Opening of scenes by source: a directory, a shard, several of them, or a registered name such as `generated`."""

import re
from collections import Counter
from collections.abc import Callable, Collection, Container, Mapping, Sequence
from pathlib import Path

import numpy as np

from c2fmae.core.choice import Choice
from c2fmae.core.errors import UserError, did_you_mean
from c2fmae.core.granularity import GRANULARITIES
from c2fmae.core.registry import Registry
from c2fmae.core.text import format_count
from c2fmae.data.combine import ConcatScenes, SubsetScenes
from c2fmae.data.encode import key_to_member_key
from c2fmae.data.folders import open_folder_tree
from c2fmae.data.generated import GeneratedScenes
from c2fmae.data.problems import Problem, raise_first_problem
from c2fmae.data.remote import download_shards, is_remote
from c2fmae.data.scenes import Scenes
from c2fmae.data.shards import open_shards
from c2fmae.data.tar_index import INDEX_SUFFIX

_MAX_NAMES_TO_SUGGEST_FROM = 10_000  # finding the nearest of a million names takes most of a minute

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
    """Open scenes; raise an error for any problem that can be found without decoding.

    Args:
        source: a directory tree, a directory of images without maps, a `.tar`, a directory of the shards of one set, a
            pattern such as `voc/train-*.tar`, a URL of shards, a registered name, or a list of these with one label
            space.
        granularities: those to load; by default all that the data has.
        keys: load only these samples, and ignore problems of others.
        folders: names of a tree's directories by granularity, where they differ from the granularity's.
        options: options of a registered name; `generated` has size, length, seed, …
    """
    scenes, problems = inspect_scenes(source, granularities=granularities, folders=folders, objects=False, **options)
    return select_complete(source, scenes, problems, keys)


def select_complete(
    source: DataSource, scenes: Scenes | None, problems: Sequence[Problem], keys: Collection[str] | None
) -> Scenes:
    """Return all scenes of a source, or those of some keys. Raise an error for a problem of one of them."""
    if keys is None or scenes is None:
        raise_first_problem(problems)
    else:
        row_by_key = {key: row for row, key in enumerate(scenes.keys)}
        chosen = {_find_stored_key(key, row_by_key) for key in keys}
        missing = sorted(chosen - row_by_key.keys())
        if missing:
            hint = did_you_mean(missing[0], row_by_key) if len(row_by_key) <= _MAX_NAMES_TO_SUGGEST_FROM else ""
            raise UserError(
                f"{_format_source(source)}: {len(missing)} of the {len(chosen)} selected keys have no complete"
                f" sample (for example {missing[0]!r}). {hint or 'Remove them from the list'}"
            )
        scenes = SubsetScenes(scenes, np.array(sorted(row_by_key[key] for key in chosen), np.int64))
    if scenes is None or not len(scenes):
        raise UserError(f"{_format_source(source)}: contains no scenes. Check the source")
    return scenes


def _find_stored_key(key: str, stored: Container[str]) -> str:
    """Return a key of a list as the source has it: the list may be older than a pack, whose keys have no dots."""
    return key if key in stored or (packed := key_to_member_key(key)) not in stored else packed


def inspect_scenes(
    source: DataSource,
    *,
    granularities: Sequence[str] | None = None,
    folders: Mapping[str, str] | None = None,
    objects: bool = False,
    **options: object,
) -> tuple[Scenes | None, tuple[Problem, ...]]:
    """Open the complete samples of a source, and list the problems of the others.

    `objects` also reads the objects of packs that have them.
    """
    for name in granularities or ():
        GRANULARITIES.get(name)
    if isinstance(source, str) and source in DATASETS and not Path(source).exists():
        values = {"name": source, "options": options}
        source, options = _RegisteredDataset.from_dict(values, source=source), {}
    if options:
        raise UserError(
            f"{_format_source(source)}: has no option {next(iter(options))!r}; only registered data sets have options."
            " Remove it"
        )
    if isinstance(source, Choice):
        scenes: Scenes = source.build()
        return (SubsetScenes(scenes, granularities=tuple(granularities)) if granularities else scenes), ()
    if not isinstance(source, str | Path):
        opened = [
            inspect_scenes(part, granularities=granularities, folders=folders, objects=objects) for part in source
        ]
        opened_sources = [scenes for scenes, _ in opened if scenes is not None]
        return ConcatScenes(opened_sources) if opened_sources else None, tuple(
            problem for _, problems in opened for problem in problems
        )
    location = resolve_source(source)
    if isinstance(location, Path):
        return open_folder_tree(location, granularities, folders or {})
    return open_shards(location, granularities, objects=objects)


def resolve_source(source: str | Path) -> Path | list[Path]:
    """Return the root of a directory tree, or the paths of shards, without reading them; URLs are downloaded."""
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
    matches = sorted(path.parent.glob(path.name)) if _is_pattern(path.name) else []
    shards = [match for match in matches if not match.name.endswith(INDEX_SUFFIX)]
    if not shards and _is_pattern(path.name) and path.parent.is_dir():
        raise UserError(f"{path}: no file matches. {_describe_content(path.parent)}")
    if not shards:
        raise UserError(f"{path}: does not exist. {did_you_mean(str(source), DATASETS) or _expected_sources()}")
    for shard in shards:
        if shard.suffix != ".tar":
            raise UserError(f"{path}: matches {shard.name}, which is not a tar shard. {_expected_sources()}")
    return shards


def _check_single_set(folder: str | Path, shards: list[Path]) -> list[Path]:
    """Raise an error for shards of several sets: train and val often share a directory but should not be mixed."""
    num_shards = Counter(re.sub(r"[-_]?\d*$", "", shard.stem) for shard in shards)
    if len(num_shards) > 1:
        sets = ", ".join(f"{name} ({count})" for name, count in num_shards.items())
        example = next((name for name in num_shards if "train" in name), next(iter(num_shards)))
        raise UserError(
            f"{folder}: contains shards of several sets: {sets}. Choose one, as in '{folder}/{example}*.tar'"
        )
    return shards


def _describe_content(folder: Path) -> str:
    """Return a sentence with the shards of a folder or, if it has none, its other content."""
    names = sorted(path.name for path in folder.glob("*.tar")) or sorted(path.name for path in folder.iterdir())
    more = f" and {format_count(len(names) - 5, 'other')}" if len(names) > 5 else ""
    location = "This folder" if folder == Path() else folder
    return f"{location} has {', '.join(names[:5])}{more}. Change the pattern" if names else f"{location} is empty"


def _is_pattern(name: str) -> bool:
    return any(c in name for c in "*?[")


def _expected_sources() -> str:
    return f"Give a directory, a .tar shard, a pattern of shards, or one of: {', '.join(DATASETS)}"


def _format_source(source: DataSource) -> str:
    if isinstance(source, Choice):
        return source.name
    return str(source) if isinstance(source, str | Path) else ", ".join(map(_format_source, source))
