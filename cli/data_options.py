"""Arguments that several `c2fmae data` commands have, and the scenes that they choose."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from c2fmae.data.scenes import Scenes

DatasetArgument = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="A folder, a shard, a pattern of shards such as 'voc/train-*.tar', objects (a COCO json, images of YOLO, a"
        " list of VOC), or `generated`.",
    ),
]
GranularitiesOption = Annotated[
    str | None,
    typer.Option(metavar="NAME,…", help="Read only these granularities, as in rgb for images without maps."),
]
KeysOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Read only these samples: one key per line, as --fix-list writes.")
]
BoxesOnlyOption = Annotated[
    bool, typer.Option("--boxes-only", help="Read no masks of objects, for data in which some objects have none.")
]
WorkersOption = Annotated[
    int | None, typer.Option(min=1, help="Number of processes; by default up to one per core, fewer for small data.")
]


def open_chosen_scenes(
    source: str | list[str], granularities: str | None, keys: Path | None = None, *, boxes_only: bool = False
) -> "Scenes":
    """Return the scenes of a source, with the chosen granularities and the samples that a file lists."""
    from c2fmae.data.key_list import read_keys
    from c2fmae.data.objects import inspect_maps_and_objects
    from c2fmae.data.sources import select_complete

    opened = inspect_maps_and_objects(source, split_granularities(granularities), masks=not boxes_only)
    return select_complete(source, *opened, read_keys(keys) if keys is not None else None)


def split_granularities(granularities: str | None) -> tuple[str, ...] | None:
    """Return the names in a list separated by commas; None stands for all."""
    return tuple(name.strip() for name in granularities.split(",")) if granularities is not None else None
