"""Products of wide and thin tensors against float64, whole and in blocks."""

import pytest
import torch

from lorafit.kernels import thin
from lorafit.kernels.thin import add_widened, draw_kept, narrow, narrow_gradient

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _many_blocks(monkeypatch):
    """Blocks of 16 rows, so that there are several."""
    monkeypatch.setattr(thin, "_BLOCK_NUMBERS", 1)


def relative(got, wanted):
    return float((got.double() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("tokens", [0, 1, 16, 53])
def test_the_three_products(tokens, dropout, dtype):
    torch.manual_seed(3)
    thin_dtype = thin.thin_dtype(dtype)
    x = torch.randn(tokens, 40).to(dtype)
    a = torch.randn(6, 40, dtype=thin_dtype)
    h = torch.randn(tokens, 6, dtype=thin_dtype)
    kept = draw_kept(tokens, 40, dropout, CPU) if dropout else None
    mask = 1.0 if kept is None else kept.mask.double() / kept.probability
    if tokens == 0:
        assert narrow(x, a, kept).shape == (0, 6)
        assert not narrow_gradient(h, x, kept).any()
        add_widened(x, h, a, 2.0, kept)
        return
    assert narrow(x, a, kept).dtype == thin_dtype
    assert relative(narrow(x, a, kept), (x.double() * mask) @ a.double().t()) < 1e-6
    assert relative(narrow_gradient(h, x, kept), h.double().t() @ (x.double() * mask)) < 1e-6
    y = x.clone()
    add_widened(y, h, a, 0.7, kept)
    wanted = x.double() + 0.7 * (h.double() @ a.double()) * mask
    rounded_once = relative(wanted.to(dtype), wanted)
    assert relative(y, wanted) <= 1.05 * rounded_once + 1e-6


def test_two_halves_hold_sixteen_bits():
    """What tensor cores are given in place of a float32 tensor."""
    number = torch.randn(1000)
    high, low = thin._two(number, torch.bfloat16)
    assert high.dtype == low.dtype == torch.bfloat16
    assert relative(high.double() + low.double(), number.double()) < 2**-16
    assert relative(high, number.double()) > 2**-11
