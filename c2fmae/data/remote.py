"""Shards at a URL (s3://, gs://, https://, …): copied into a local cache once, then read like local ones.

Training reads samples in random order, and every shard in every epoch, which would be slow over a network.
"""

import hashlib
import logging
from pathlib import Path, PurePosixPath
from typing import Any

from c2fmae.core.errors import UserError
from c2fmae.core.files import atomic_writer, default_cache_dir, read_file, write_atomic
from c2fmae.core.locks import lock_dir
from c2fmae.data.info import DATASET_FILE, PACK_PLAN_FILE

log = logging.getLogger(__name__)

_HTTP_VALIDATORS = ("ETag", "Last-Modified", "Content-MD5", "Digest")
"""Headers of HTTP that change with the content, as fsspec names them."""

_PACKAGES = {
    **dict.fromkeys(("http", "https"), "aiohttp requests"),
    **dict.fromkeys(("gs", "gcs"), "gcsfs"),
    **dict.fromkeys(("abfs", "abfss", "az"), "adlfs"),
    "hf": "huggingface_hub",
    "s3": "s3fs",
    "sftp": "paramiko",
}
"""The packages that fsspec needs, by the protocol of a URL."""


def is_remote(source: str) -> bool:
    """Return whether a source is a URL."""
    return "://" in source


def download_shards(url: str) -> list[Path]:
    """Copy the shards of a URL (one, a pattern, or a directory of them) and their `dataset.json`; return the copies.

    A shard that has changed is copied again, and `dataset.json` each time. An interrupted copy leaves no file.
    """
    import fsspec

    try:
        remote, path = fsspec.core.url_to_fs(url)
        if any(c in path for c in "*?["):
            paths = remote.glob(path)
        else:
            paths = [path] if path.endswith(".tar") else remote.glob(f"{path.rstrip('/')}/*.tar")
        shards = sorted(name for name in paths if name.endswith(".tar"))
        if not shards:
            raise UserError(f"{url}: has no shards. Give the URL of a .tar, of a directory of them, or a pattern")
        parent = shards[0].rpartition("/")[0]  # a path would lose the second slash of https://
        if any(shard.rpartition("/")[0] != parent for shard in shards):
            raise UserError(f"{url}: has shards in several directories. Give a list with each directory as a source")
        digest = hashlib.blake2b(remote.unstrip_protocol(parent).encode(), digest_size=8).hexdigest()
        folder = default_cache_dir() / f"{PurePosixPath(parent).name}-{digest}"
        folder.mkdir(parents=True, exist_ok=True)
        with lock_dir(folder):  # all processes of a training run arrive here at once
            for name in (DATASET_FILE, PACK_PLAN_FILE):
                if remote.exists(f"{parent}/{name}"):
                    _write_if_changed(remote, f"{parent}/{name}", folder / name)
                else:
                    (folder / name).unlink(missing_ok=True)
            return [_download_if_changed(remote, shard, folder, url) for shard in shards]
    except UserError:
        raise
    except ImportError as error:  # of the package for the URL's protocol
        protocol = url.partition("://")[0]
        packages = _PACKAGES.get(protocol)
        fix = f"Run: pip install {packages}" if packages else f"Install the package of fsspec for {protocol}://"
        raise UserError(f"{url}: {str(error).rstrip('.')}. {fix}") from error
    except Exception as error:  # every file system raises its own types
        raise _copy_error(url, error) from error


def _download_if_changed(remote: Any, path: str, folder: Path, url: str) -> Path:
    target = folder / PurePosixPath(path).name
    version = folder / f".{target.name}.version"
    expected_version = _describe_version(remote, path)
    if target.exists() and version.exists() and version.read_text() == expected_version:
        return target
    log.info("copying %s to %s", remote.unstrip_protocol(path), folder)
    version.unlink(missing_ok=True)
    with atomic_writer(target) as file:
        try:
            remote.get_file(path, file.name)
        except OSError as error:  # mostly of the source, which atomic_writer would take for one of the target
            raise _copy_error(url, error) from error
    version.write_text(expected_version)
    return target


def _describe_version(remote: Any, path: str) -> str:
    """Return the size and all else that changes with the content of a remote file.

    `ukey` covers that for most file systems, but for HTTP only the URL.
    """
    info = remote.info(path)
    validators = [f"{name}={info[name]}" for name in _HTTP_VALIDATORS if info.get(name)]
    return " ".join([str(info.get("size")), str(remote.ukey(path)), *validators])


def _write_if_changed(remote: Any, path: str, target: Path) -> None:
    """Copy a small file whatever its version: some servers report none."""
    content = remote.cat_file(path)
    if not target.exists() or read_file(target) != content:
        log.info("copying %s to %s", remote.unstrip_protocol(path), target.parent)
        write_atomic(target, content)


def _copy_error(url: str, error: Exception) -> UserError:
    return UserError(f"{url}: cannot be copied: {error}. Check the URL and your permissions")
