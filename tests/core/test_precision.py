"""The precision of a run."""

import platform
from pathlib import Path

import pytest
import torch

from c2fmae.core import precision
from c2fmae.core.distributed import World
from c2fmae.core.experiment import resolve_precision
from c2fmae.core.precision import choose_precision, has_bfloat16_instructions
from c2fmae.core.run_dir import RunDir
from c2fmae.recipes.config import load_recipe


@pytest.mark.parametrize(("has_instructions", "expected"), [(True, "bf16"), (False, "fp32")])
def test_auto_is_bf16_where_it_is_fast(monkeypatch: pytest.MonkeyPatch, has_instructions: bool, expected: str) -> None:
    monkeypatch.setattr(precision, "has_bfloat16_instructions", lambda: has_instructions)
    assert choose_precision("auto", "cpu") == expected
    assert choose_precision("auto", "cuda") == "bf16"
    assert choose_precision("bf16", "cpu") == "bf16"


@pytest.mark.parametrize(
    ("machine", "is_in_library", "has_avx512", "has_amx", "expected"),
    [
        ("x86_64", True, False, False, False),
        ("AMD64", True, False, False, False),
        ("x86_64", True, True, False, True),
        ("x86_64", True, False, True, True),
        ("x86_64", False, True, True, False),
        ("aarch64", True, False, False, True),
        ("aarch64", False, False, False, False),
    ],
)
def test_cpus_with_the_instructions_are_recognised(
    monkeypatch: pytest.MonkeyPatch, machine: str, is_in_library: bool, has_avx512: bool, has_amx: bool, expected: bool
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: is_in_library)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_amx)
    assert has_bfloat16_instructions() is expected


def test_a_run_keeps_the_precision_that_it_started_with(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config, run_dir = load_recipe("c2fmae-tiny"), RunDir(tmp_path)
    assert config.training.precision == "auto"
    monkeypatch.setattr(precision, "has_bfloat16_instructions", lambda: False)
    started = resolve_precision(config, run_dir, World())
    assert started.training.precision == "fp32"
    run_dir.write_text("config.yaml", started.to_yaml())
    monkeypatch.setattr(precision, "has_bfloat16_instructions", lambda: True)  # on another machine
    assert resolve_precision(config, run_dir, World()) == started
    explicit = load_recipe("c2fmae-tiny", ["training.precision=bf16"])
    assert resolve_precision(explicit, run_dir, World()) == explicit
