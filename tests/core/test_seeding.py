import random
import subprocess
import sys

import numpy as np
import torch

from c2fmae.core.seeding import derive_seed


def test_a_seed_depends_on_every_coordinate_and_nothing_else() -> None:
    coordinates = [
        (s, stream, e, i) for s in range(4) for stream in ("crop", "flip") for e in range(8) for i in range(8)
    ]
    assert len({derive_seed(*c) for c in coordinates}) == len(coordinates)
    assert derive_seed(1, "crop", 2, 3) == 8132046155821505338  # or no old run could be repeated


def test_adjacent_coordinates_are_not_confused() -> None:
    assert derive_seed(1, "a", 12, 3) != derive_seed(1, "a", 1, 23)
    assert derive_seed(1, "a", 0) != derive_seed(1, "a")


def test_a_seed_is_valid_for_every_generator() -> None:
    seed = derive_seed(0, "masks", 0)
    assert 0 <= seed < 2**63
    torch.Generator().manual_seed(seed)
    np.random.default_rng(seed)
    random.Random(seed)


def test_seeds_need_no_torch() -> None:
    script = "import sys; sys.modules['torch'] = None; import c2fmae.core.seeding"
    subprocess.run([sys.executable, "-c", script], check=True)
