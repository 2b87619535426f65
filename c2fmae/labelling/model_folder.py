"""Folders of models in the layout of Hugging Face: what may be loaded from them, their digest and their licence.

Everything is decided from the files before a library opens them. Nothing is fetched, and no code of a folder runs.
"""

import hashlib
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from c2fmae.core.errors import UserError, did_you_mean
from c2fmae.core.files import check_regular_file, open_file
from c2fmae.core.json_file import read_json
from c2fmae.labelling.families import ModelFamily

SAFETENSORS = "model.safetensors"
PICKLE = "pytorch_model.bin"

_PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
_CONFIG_FILES = ("config.json", *_PROCESSOR_FILES, "tokenizer_config.json")
_TOKENIZER_FILES = (("tokenizer.json",), ("vocab.txt",), ("vocab.json", "merges.txt"))
"""Files of which a tokenizer needs one group."""
_DIGESTED_FILES = (
    *_CONFIG_FILES,
    *(name for group in _TOKENIZER_FILES for name in group),
    "special_tokens_map.json",
    "added_tokens.json",
)
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_LICENCE_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "LICENCE.txt")
_MAX_TEXT_BYTES = 1 << 20
_MAX_CONFIG_BYTES = 16 << 20


def resolve_model_folder(path: str, *, option: str) -> Path:
    """Return the folder of a path, before which `hf:` may stand; refuse an id of the Hugging Face hub."""
    text = path.removeprefix("hf:")
    folder = Path(text).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise UserError(
            f"{option}: {text} is a file (expected a folder with config.json and {SAFETENSORS}). Use its folder"
        )
    if _HUB_ID.fullmatch(text) and not text.startswith((".", "~")):
        local = Path(text).name
        raise UserError(
            f"{option}: {text} is not a folder, and weights are never downloaded. If it is an id of the Hugging Face"
            f" hub, fetch it once, and use the folder {local} instead:\n  hf download {text} --local-dir {local}"
        )
    raise UserError(
        f"{option}: {text} does not exist (expected a folder with config.json and {SAFETENSORS}). Check the path"
    )


def check_model_folder(folder: Path, families: Mapping[str, ModelFamily]) -> str:
    """Return the model type of a folder whose weights can be loaded safely, or raise a `UserError` with the reason."""
    model_type = read_model_type(folder, families)
    for name in _read_config(folder / "config.json").get("architectures") or ():
        if reason := families[model_type].refused.get(name):
            raise UserError(f"{folder}: is {reason}")
    if not any((folder / name).is_file() for name in (SAFETENSORS, f"{SAFETENSORS}.index.json")):
        if any((folder / name).is_file() for name in (PICKLE, f"{PICKLE}.index.json")):
            raise UserError(
                f"{folder}: has its weights in {PICKLE} only, a pickle, which could run code. Convert it:"
                f" c2fmae import labeller {folder} OUT"
            )
        raise UserError(f"{folder}: has no {SAFETENSORS}. Download the folder again with all of its files")
    if not any((folder / name).is_file() for name in _PROCESSOR_FILES):
        raise UserError(
            f"{folder}: has no image processor (expected {' or '.join(_PROCESSOR_FILES)}). Download it with all files"
        )
    has_tokenizer = any(all((folder / name).is_file() for name in group) for group in _TOKENIZER_FILES)
    if families[model_type].has_tokenizer and not has_tokenizer:
        expected = ", or ".join(" and ".join(group) for group in _TOKENIZER_FILES)
        raise UserError(f"{folder}: has no tokenizer (expected {expected}). Download it with all files")
    return model_type


def read_model_type(folder: Path, model_types: Collection[str]) -> str:
    """Return the model type in config.json, if it is a known one and the folder brings no code."""
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: has no config.json, so it is not a model of transformers. Use another folder")
    if (folder / "adapter_config.json").exists():
        raise UserError(f"{folder}: is an adapter for another model (adapter_config.json). Merge both, then use that")
    configs = {name: _read_config(folder / name) for name in _CONFIG_FILES if (folder / name).is_file()}
    for name, config in configs.items():
        _check_no_code(folder / name, config)
    model_type = configs["config.json"].get("model_type")
    if model_type not in model_types:
        hint = did_you_mean(str(model_type), model_types)
        raise UserError(
            f"{folder}: is a model of type {model_type!r}, which this labeller cannot use."
            f" {hint + ' ' if hint else ''}Supported: {', '.join(sorted(model_types))}"
        )
    return str(model_type)


def compute_model_digest(folder: Path) -> str:
    """Return the SHA-256 of the names and contents of config, processor, tokenizer and weights."""
    digest = hashlib.sha256()
    names = [name for name in _DIGESTED_FILES if (folder / name).is_file()]
    for name in sorted({*names, *(path.name for path in folder.glob("*.safetensors*"))}):
        check_regular_file(folder / name)
        with (folder / name).open("rb") as file:
            digest.update(f"{name}\n{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def list_other_files(folder: Path) -> list[Path]:
    """Return the files of a folder that describe its model, without the weights."""
    names = ("README.md", *_LICENCE_FILES, *_DIGESTED_FILES)
    return [folder / name for name in names if (folder / name).is_file()]


def read_licence(folder: Path) -> str:
    """Return the licence that README.md or LICENSE of a folder states, or "licence not stated"."""
    readme = _read_text(folder / "README.md")
    if header := re.match(r"---\s*\n(.*?)\n---", readme, re.DOTALL):
        for key in ("license_name", "license"):  # `license: other` has a name of its own
            if found := re.search(rf"^{key}:[ \t]*['\"]?([^'\"\n]+)", header[1], re.MULTILINE):
                return found[1].strip()
    for name in _LICENCE_FILES:
        lines = [line.strip("# \t") for line in _read_text(folder / name).splitlines()]
        if title := next((line for line in lines if line), ""):
            return title[:60]
    return "licence not stated"


def _read_config(path: Path) -> dict[str, Any]:
    return read_json(path, max_bytes=_MAX_CONFIG_BYTES, fix="Download it again")


def _check_no_code(path: Path, config: Mapping[str, Any]) -> None:
    """Refuse settings with which transformers imports code from the folder, or loads it from the hub."""
    for key, value in _walk(config):
        if key == "auto_map":
            raise UserError(
                f"{path}: brings its own code (auto_map), which is never run. Use a model whose class is part of"
                " transformers"
            )
        if key.endswith("attn_implementation") and "/" in str(value):
            raise UserError(f"{path}: names code to download ({key}: {value}). Remove this setting")
        if key == "quantization_config" and value:
            raise UserError(f"{path}: has quantized weights. Use the model with its original weights")


def _walk(node: object) -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield str(key), value
            yield from _walk(value)
    elif isinstance(node, list):
        for value in node:
            yield from _walk(value)


def _read_text(path: Path) -> str:
    if not path.is_file():
        return ""
    with open_file(path) as file:
        return file.read(_MAX_TEXT_BYTES).decode(errors="replace")
