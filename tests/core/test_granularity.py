import subprocess
import sys

import pytest

from c2fmae.core.granularity import COARSE_TO_FINE, GRANULARITIES


@pytest.mark.parametrize("name", [name for name in GRANULARITIES if GRANULARITIES.get(name).kind == "ids"])
def test_ids_are_stored_without_loss_and_never_interpolated(name: str) -> None:
    spec = GRANULARITIES.get(name)
    assert spec.resize == "nearest"
    assert spec.suffix.endswith(".png")


def test_the_granularities_of_the_paper_and_depth_are_registered() -> None:
    assert {*COARSE_TO_FINE, "depth"} <= set(GRANULARITIES)


def test_granularities_need_neither_torch_nor_pydantic() -> None:
    script = "import sys; sys.modules |= {'torch': None, 'pydantic': None}; import c2fmae.core.granularity"
    subprocess.run([sys.executable, "-c", script], check=True)
