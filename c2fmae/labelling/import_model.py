"""Import of a folder whose weights are pickles: the same folder with weights as safetensors, which run no code."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from c2fmae.core.errors import UserError
from c2fmae.core.weight_file import read_weight_file
from c2fmae.labelling.families import ALL_FAMILIES
from c2fmae.labelling.model_folder import PICKLE, SAFETENSORS, list_other_files, read_model_type
from c2fmae.labelling.weights import load_pretrained


@dataclass(frozen=True)
class ImportedFolder:
    """A folder that was written and loaded."""

    model_type: str
    num_parameters: int
    sha256: str
    licence: str
    unexpected: tuple[str, ...]
    """Parameters that the model does not have."""


def import_model(folder: Path, out: Path) -> ImportedFolder:
    """Write a folder of a labeller's model to `out`, with safetensors in place of pickles, if it can be loaded."""
    model_type = read_model_type(folder, ALL_FAMILIES)
    if any((folder / name).is_file() for name in (SAFETENSORS, f"{SAFETENSORS}.index.json")):
        raise UserError(f"{folder}: has {SAFETENSORS} already. Use this folder as it is")
    if not any((folder / name).is_file() for name in (PICKLE, f"{PICKLE}.index.json")):
        raise UserError(f"{folder}: has no weights (expected {PICKLE}). Download it with all of its files")
    if out.exists() and (out.is_file() or any(out.iterdir())):
        raise UserError(f"{out}: already exists. Choose another directory")
    partial = out.with_name(f".{out.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        for path in list_other_files(folder):
            shutil.copyfile(path, partial / path.name)
        tensors = read_weight_file(folder, strip_prefixes=False).tensors
        # Tied parameters are several names of one tensor, which safetensors does not store.
        copies = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
        save_file(copies, partial / SAFETENSORS, metadata={"format": "pt"})
        loaded = load_pretrained(str(partial), ALL_FAMILIES, option="FOLDER")
        partial.replace(out)  # which may be an empty directory
    except UserError as error:
        raise UserError(str(error).replace(str(partial), str(folder))) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return ImportedFolder(
        model_type=model_type,
        num_parameters=sum(parameter.numel() for parameter in loaded.model.parameters()),
        sha256=loaded.digest,
        licence=loaded.licence,
        unexpected=loaded.unexpected,
    )
