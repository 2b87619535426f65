"""`c2fmae data compare`: scores of maps relative to true ones."""

from collections.abc import Collection
from pathlib import Path
from shlex import quote
from typing import Annotated

import typer
from c2fmae_cli.data_options import KeysOption, WorkersOption


def compare(
    maps: Annotated[str, typer.Argument(metavar="MAPS", help="The maps: a folder, a shard, or a pattern of shards.")],
    truth: Annotated[
        str, typer.Argument(metavar="TRUTH", help="True maps of the same images, by the same keys, at any stride.")
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="PAGE", help="The HTML page to write, and beside it a .json of all scores.")
    ] = Path("compare.html"),
    limit: Annotated[
        int | None, typer.Option(min=1, help="At most this many images, evenly spaced over those in both sets.")
    ] = None,
    keys: KeysOption = None,
    workers: WorkersOption = None,
) -> None:
    """Compare semantic and instance maps with true ones: mIoU, best overlap, PQ, boundaries, beside baselines."""
    from c2fmae.data.key_list import read_keys

    write_comparison_page(
        maps, truth, out, limit=limit, keys=read_keys(keys) if keys is not None else None, workers=workers
    )
    print(f"next: c2fmae data preview {quote(maps)}")


def write_comparison_page(
    maps: str,
    truth: str,
    out: Path,
    *,
    limit: int | None = None,
    keys: Collection[str] | None = None,
    workers: int | None = None,
) -> None:
    """Compare two sets, print the scores, and write them to a page and a JSON file."""
    from c2fmae.core.progress import ProgressDisplay
    from c2fmae.core.text import escape_lines, format_count
    from c2fmae.data.process_pool import choose_num_workers
    from c2fmae.data.sources import open_scenes
    from c2fmae.eval.maps.compare import compare_maps
    from c2fmae.eval.maps.page import check_page_path, describe_comparison, list_results, write_comparison
    from c2fmae.eval.maps.pairs import pair_scenes
    from c2fmae.eval.results import format_results

    check_page_path(out)
    pairs = pair_scenes(open_scenes(maps, keys=keys), open_scenes(truth, keys=keys), limit=limit)
    total = len(pairs)
    with ProgressDisplay(total_steps=total, name="comparing", unit="images") as display:
        comparison = compare_maps(pairs, workers=choose_num_workers(workers, total), progress=display.advance)
    metrics = comparison.compute_metrics()
    print(f"{format_count(total, 'image')} with {' and '.join(pairs.granularities)} maps in both sets")
    for sentence in describe_comparison(pairs, comparison):
        print(f"note: {escape_lines(sentence)}")
    for line in format_results(list_results(metrics, out)):
        print(line)
    json_path = write_comparison(out, pairs, comparison, metrics, maps=maps, truth=truth)
    print(f"wrote {out} and {json_path}")
