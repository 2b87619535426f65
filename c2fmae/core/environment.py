"""Environment of a run: versions, machine and settings that can explain why two runs differ."""

import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from c2fmae.core.registry import list_plugin_entries

_VARIABLE_PREFIXES = (
    "ATEN_",
    "CUBLAS_",
    "CUDNN_",
    "DNNL_",
    "GOMP_",
    "KMP_",
    "MKL_",
    "NVIDIA_TF32",
    "OMP_",
    "ONEDNN_",
    "PYTORCH_",
    "TORCH_",
    "TORCHINDUCTOR_",
)
"""Prefixes of environment variables that change results or speed."""

_EXACT_RESUME_KEYS = {
    ("torch", "version"): "torch",
    ("torch", "build"): "torch's build",
    ("torch", "threads"): "threads",
    ("world_size",): "processes",
    ("compile",): "compile",
    ("timm",): "timm",
    ("numpy",): "numpy",
    ("cpu",): "CPU",
    ("gpus",): "GPUs",
}
"""Entries that must be equal for a resumed run to be exact, with their names in messages."""


def collect_environment(**extra: Any) -> dict[str, Any]:
    """Return versions, machine and settings as JSON values; `extra` adds entries such as `world_size`."""
    return {
        "c2fmae": version("c2fmae"),
        "revision": _git_revision(Path(__file__).parents[2]),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": {
            "version": torch.__version__,
            "build": f"{torch.version.git_version}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}",
            "is_debug": torch.version.debug,
            "threads": torch.get_num_threads(),
            "threads_between_operators": torch.get_num_interop_threads(),
            "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
            "cudnn_deterministic": torch.backends.cudnn.deterministic,
            "cudnn_benchmark": torch.backends.cudnn.benchmark,
            "float32_matmul_precision": torch.get_float32_matmul_precision(),
        },
        **{package: version(package) for package in ("timm", "torchvision", "numpy")},
        "cpu": f"{_cpu_name()}, {torch.backends.cpu.get_cpu_capability()}",
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "plugins": list_plugin_entries(),
        "variables": {name: os.environ[name] for name in sorted(os.environ) if name.startswith(_VARIABLE_PREFIXES)},
        **extra,
    }


def describe_environment_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each difference that prevents an exact resume.

    >>> describe_environment_changes({"timm": "1.0.20", "world_size": 2}, {"timm": "1.0.31", "world_size": 2})
    ['timm 1.0.20 → 1.0.31']
    """
    changes = {}
    for keys, name in _EXACT_RESUME_KEYS.items():
        before, after = (_format_value(_get_nested(environment, keys)) for environment in (old, new))
        if before != after and not (name == "torch's build" and "torch" in changes):
            changes[name] = f"{name} {before} → {after}"
    return list(changes.values())


def _get_nested(tree: Any, keys: tuple[str, ...]) -> Any:
    for key in keys:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def _format_value(value: Any) -> str:
    match value:
        case None:
            return "unknown"
        case bool():  # earlier versions recorded whether the model was compiled
            return "on" if value else "off"
        case list():
            return ", ".join(map(str, value)) or "none"
        case _:
            return str(value)


def _git_revision(root: Path) -> str | None:
    """Return the commit of a checkout, and whether files differ from it; None for an installed package."""
    if not (root / ".git").exists():
        return None
    try:
        commit = _run_git(root, "rev-parse", "HEAD")
        return f"{commit}{', changed' if _run_git(root, 'status', '--porcelain', '--untracked-files=no') else ''}"
    except (OSError, subprocess.SubprocessError):
        return None


def _run_git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout.strip()


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
