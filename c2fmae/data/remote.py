"""Shards from elsewhere (s3://, gs://, https://, …): copied into a local cache once, then read like any others.

Random access needs a sample to be one read away, and training reads every shard every epoch: a copy is both.
"""

import hashlib
import logging
import os
from pathlib import Path, PurePosixPath
from typing import Any

from c2fmae.core.errors import UserError
from c2fmae.core.locks import lock_dir
from c2fmae.data.info import DATASET_FILE, PACK_PLAN_FILE

log = logging.getLogger(__name__)


def default_cache_dir() -> Path:
    """Return where copies are kept: `C2FMAE_CACHE`, or the user's cache folder."""
    chosen = os.environ.get("C2FMAE_CACHE")
    return Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "c2fmae"


def is_remote(source: str) -> bool:
    """Whether a source is a URL."""
    return "://" in source


def download_shards(url: str) -> list[Path]:
    """Copy the shards of a URL (one, a pattern, or a folder of them) and their `dataset.json`; return the copies.

    A copy is made anew when what is there has changed, and is there whole or not at all.
    """
    import fsspec

    try:
        remote, path = fsspec.core.url_to_fs(url)
        if any(c in path for c in "*?["):
            found = remote.glob(path)
        else:
            found = [path] if path.endswith(".tar") else remote.glob(f"{path.rstrip('/')}/*.tar")
        shards = sorted(name for name in found if name.endswith(".tar"))
        if not shards:
            raise UserError(f"{url}: no shards there. Give the URL of a .tar, of a folder of them, or a pattern")
        parent = PurePosixPath(shards[0]).parent
        if any(PurePosixPath(shard).parent != parent for shard in shards):
            raise UserError(f"{url}: shards of several folders. Give each folder as a source of its own, in a list")
        name = hashlib.blake2b(f"{remote.unstrip_protocol(str(parent))}".encode(), digest_size=8).hexdigest()
        folder = default_cache_dir() / f"{parent.name}-{name}"
        folder.mkdir(parents=True, exist_ok=True)
        with lock_dir(folder):  # all processes of a training run come here at once
            for name in (DATASET_FILE, PACK_PLAN_FILE):
                if remote.exists(str(parent / name)):
                    _download_if_changed(remote, str(parent / name), folder)
                else:
                    (folder / name).unlink(missing_ok=True)
            return [_download_if_changed(remote, shard, folder) for shard in shards]
    except UserError:
        raise
    except ImportError as error:  # the package that speaks the protocol
        raise UserError(f"{url}: {error}") from error
    except Exception as error:  # every file system has errors of its own
        raise UserError(f"{url}: cannot be copied: {error}. Check the URL and your rights") from error


def _download_if_changed(remote: Any, path: str, folder: Path) -> Path:
    target = folder / PurePosixPath(path).name
    version = folder / f".{target.name}.version"
    expected_version = f"{remote.size(path)} {remote.ukey(path)}"
    if target.exists() and version.exists() and version.read_text() == expected_version:
        return target
    log.info("copying %s to %s", remote.unstrip_protocol(path), folder)
    unfinished = folder / f".{target.name}.{os.getpid()}"
    version.unlink(missing_ok=True)
    try:
        remote.get_file(path, str(unfinished))
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)
    version.write_text(expected_version)
    return target
