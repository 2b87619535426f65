"""The random numbers of masks: rows are those of the whole draw, streams are independent, and stored masks recur."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from c2fmae.masking import RowGenerator, mask_scenes
from c2fmae.masking.noise import MaskDraw, MaskGenerator, draw_noise

pytestmark = pytest.mark.numeric

SEEDS = st.integers(0, 2**63 - 1)


def draw(generator: MaskGenerator, images: range, total: int, patches: int = 35, granularities: int = 3) -> MaskDraw:
    return draw_noise(generator, images, total, patches, torch.ones(granularities, dtype=torch.float64))


@given(
    seed=SEEDS,
    bounds=st.lists(st.integers(0, 40), min_size=2, max_size=2),
    patches=st.integers(1, 21),
    granularities=st.integers(1, 4),
)
def test_a_process_draws_its_rows_of_the_complete_draw(
    seed: int, bounds: list[int], patches: int, granularities: int
) -> None:
    first, last = sorted(bounds)
    pairs: list[list[MaskGenerator]] = [[RowGenerator(seed) for _ in range(2)], [torch.Generator() for _ in range(2)]]
    for generators in pairs:
        complete, own = (
            draw(generator, images, 40, patches, granularities)
            for generator, images in zip(generators, (range(40), range(first, last)), strict=True)
        )
        assert torch.equal(own.shares, complete.shares[first:last])
        for own_noise, noise in zip(own.noise, complete.noise, strict=True):
            assert torch.equal(own_noise, noise[first * granularities : last * granularities])


@given(seed=SEEDS, images=st.integers(1, 9), total=st.integers(9, 4096))
def test_numbers_of_an_image_do_not_depend_on_the_size_of_the_batch(seed: int, images: int, total: int) -> None:
    draws = [draw(RowGenerator(seed), range(images), size) for size in (images, total)]
    assert torch.equal(draws[0].shares, draws[1].shares)
    assert all(torch.equal(*noise) for noise in zip(draws[0].noise, draws[1].noise, strict=True))


@given(
    seed=SEEDS, first=st.integers(0, 2**40), rows=st.integers(1, 5), width=st.integers(1, 9), stream=st.integers(0, 5)
)
def test_numbers_are_halves_of_draws_of_pcg64(seed: int, first: int, rows: int, width: int, stream: int) -> None:
    """PCG64 is stable across versions of NumPy, so this states the bits of every mask."""
    per_row = (width + 1) // 2
    raw = np.random.PCG64(seed).jumped(stream).advance(first * per_row).random_raw(rows * per_row)
    halves = np.stack([raw & 0xFFFFFFFF, raw >> 32], axis=1).reshape(rows, -1)[:, :width]
    numbers = RowGenerator(seed).draw_uniform(stream, range(first, first + rows), width)
    assert numbers.dtype == torch.float32
    assert numbers.tolist() == ((halves >> 8) / 2**24).tolist()


def test_numbers_are_uniform_and_independent() -> None:
    shares, noise = draw(RowGenerator(1), range(500), 500, patches=196)
    numbers = torch.stack(noise[:4]).flatten(1).double()
    assert float(numbers.min()) >= 0
    assert float(numbers.max()) < 1
    torch.testing.assert_close(numbers.mean(dim=1), torch.full((4,), 0.5).double(), atol=0.005, rtol=0)
    torch.testing.assert_close(numbers.var(dim=1), torch.full((4,), 1 / 12).double(), atol=0.002, rtol=0)
    correlation = torch.corrcoef(torch.cat([numbers, numbers[:1].roll(1, dims=1), numbers[:1].roll(196, dims=1)]))
    assert float((correlation - torch.eye(6).double()).abs().max()) < 0.01
    torch.testing.assert_close(shares.mean(dim=0), torch.full((3,), 1 / 3).double(), atol=0.03, rtol=0)
    torch.testing.assert_close(shares.var(dim=0), torch.full((3,), 1 / 18).double(), atol=0.01, rtol=0)
    assert torch.equal(noise.image, noise.image[::3].repeat_interleave(3))  # one number for all granularities


@pytest.mark.parametrize("concentration", [[0.0, 1.0], [-1.0, 1.0], [torch.inf, 1.0], [torch.nan, 1.0]])
@pytest.mark.parametrize("generator", [RowGenerator(0), torch.Generator()], ids=["rows", "batch"])
def test_concentrations_that_are_not_positive_are_rejected(
    concentration: list[float], generator: MaskGenerator
) -> None:
    message = f"concentration: expected finite numbers above 0, got {torch.tensor(concentration).tolist()}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        draw_noise(generator, range(2), 2, 9, torch.tensor(concentration))


def test_extreme_concentrations_give_finite_shares() -> None:
    for concentration in (1e-300, 1e-4, 1e300):
        shares = draw_noise(
            RowGenerator(0), range(200), 200, 1, torch.full((3,), concentration, dtype=torch.float64)
        ).shares
        torch.testing.assert_close(shares.sum(dim=1), torch.ones(200).double())


STORED_MASKS = {
    "batch": {
        (2, 0, 0.1): [0x7F7FADB, 0x5FF7DBE],
        (2, 0, 0.25): [0x7F7FB1F, 0x5FF3FBB],
        (5, 3, 0.9): [0x7FC5DFF, 0x69BFFFD],
    },
    "rows": {
        (2, 0, 0.1): [0x7CFB7FB, 0x3FFFF2E],
        (2, 0, 0.25): [0x3DFAEFF, 0x3FFFF0F],
        (5, 3, 0.9): [0x77EDEDF, 0x5FFDFB5],
    },
}
"""The masks of two images as bits, by how the noise is drawn, size of the global batch, first image and progress."""


@pytest.mark.parametrize("mask_noise", list(STORED_MASKS))
def test_masks_are_those_of_earlier_runs(mask_noise: str) -> None:
    """Or no run could be resumed or replayed."""
    regions = torch.arange(18).view(2, 9) // 3 % 4
    for (total, first, progress), expected in STORED_MASKS[mask_noise].items():
        generator = RowGenerator(7) if mask_noise == "rows" else torch.Generator().manual_seed(7)
        masks = mask_scenes(
            "progressive",
            regions,
            regions.clamp(max=1),
            num_visible=5,
            progress=progress,
            generator=generator,
            global_batch=(first, total),
        )
        bits = [int("".join(str(int(bit)) for bit in image.flatten()), 2) for image in masks.is_masked]
        assert bits == expected
