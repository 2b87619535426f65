import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from c2fmae.core.granularity import IGNORE
from c2fmae.models.segmenters.losses import upsampled_cross_entropy

pytestmark = pytest.mark.numeric


def draw_batch(*, dtype: torch.dtype = torch.float64, size: tuple[int, int] = (9, 14)) -> tuple[Tensor, Tensor]:
    """Return logits and ids of three images, a fifth of whose pixels is unlabelled; the last has no label at all."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 5, 4, 3, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    ids = torch.randint(5, (3, *size), generator=generator)
    ids[torch.rand(ids.shape, generator=generator) < 0.2] = IGNORE
    ids[2] = IGNORE
    return logits, ids.to(torch.uint8)


def plain_cross_entropy(logits: Tensor, ids: Tensor) -> Tensor:
    upsampled = F.interpolate(logits, ids.shape[1:], mode="bilinear", align_corners=False)
    return F.cross_entropy(upsampled, ids.long(), ignore_index=IGNORE, reduction="sum")


def compute_gradient(loss: Tensor, logits: Tensor, factor: float = 1.0) -> Tensor:
    return torch.autograd.grad(factor * loss, logits)[0]


def test_loss_and_gradient_equal_those_of_the_whole_batch() -> None:
    logits, ids = draw_batch()
    loss, plain = upsampled_cross_entropy(logits, ids), plain_cross_entropy(logits, ids)
    assert loss.item() == pytest.approx(plain.item(), rel=1e-12)
    expected = compute_gradient(plain, logits, 0.25)
    torch.testing.assert_close(compute_gradient(loss, logits, 0.25), expected, rtol=1e-10, atol=1e-12)


def test_an_image_without_labels_adds_nothing() -> None:
    logits, ids = draw_batch()
    with torch.no_grad():
        logits[2] = torch.inf
    loss = upsampled_cross_entropy(logits, ids)
    assert loss.item() == pytest.approx(upsampled_cross_entropy(logits[:2], ids[:2]).item())
    assert not compute_gradient(loss, logits)[2].any()
    assert upsampled_cross_entropy(logits[2:], ids[2:]).item() == 0


def test_padding_does_not_count() -> None:
    """Unlabelled rows and columns on the right and at the bottom change no gradient of the other pixels."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(1, 4, 10, 10, generator=generator, dtype=torch.float64, requires_grad=True)
    ids = torch.full((1, 10, 10), IGNORE, dtype=torch.uint8)
    ids[:, :7, :6] = torch.randint(4, (1, 7, 6), generator=generator).to(torch.uint8)
    padded, part = upsampled_cross_entropy(logits, ids), logits[:, :, :7, :6]
    unpadded = upsampled_cross_entropy(part, ids[:, :7, :6])
    assert padded.item() == pytest.approx(unpadded.item(), rel=1e-12)
    torch.testing.assert_close(compute_gradient(padded, logits), compute_gradient(unpadded, logits))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_arithmetic_of_short_floats_is_float32(dtype: torch.dtype) -> None:
    logits, ids = draw_batch(dtype=dtype)
    wide = logits.detach().float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = upsampled_cross_entropy(logits, ids)
    expected = upsampled_cross_entropy(wide, ids)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected)
    gradient = compute_gradient(loss, logits)
    assert torch.equal(gradient, compute_gradient(expected, wide).to(dtype))
    third = compute_gradient(upsampled_cross_entropy(logits, ids) / 3, logits)
    assert torch.equal(third, (gradient.float() * torch.tensor(1 / 3)).to(dtype))


def test_only_one_image_is_upsampled_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    batch_sizes = []
    interpolate = F.interpolate

    def record(maps: Tensor, *args: object, **options: object) -> Tensor:
        batch_sizes.append(len(maps))
        return interpolate(maps, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(F, "interpolate", record)
    logits, ids = draw_batch()
    loss = upsampled_cross_entropy(logits, ids)
    assert batch_sizes == [1, 1, 1]
    assert loss.grad_fn is not None
    assert [saved.shape for saved in loss.grad_fn.saved_tensors] == [logits.shape]  # type: ignore[attr-defined]


def test_without_a_gradient_none_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, ids = draw_batch()
    monkeypatch.setattr(torch.autograd, "grad", lambda *args, **options: pytest.fail("computed a gradient"))
    with torch.no_grad():
        loss = upsampled_cross_entropy(logits, ids)
    assert loss.item() == pytest.approx(plain_cross_entropy(logits, ids).item())
    assert not loss.requires_grad
