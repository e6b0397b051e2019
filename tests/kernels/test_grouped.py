"""Products by group against a loop in float64: group by group, and in torch's one call."""

import pytest
import torch

from lorafit.kernels import grouped
from lorafit.kernels.grouped import (
    Groups,
    grouped_add_widened,
    grouped_gradient,
    grouped_narrow,
    grouped_product,
)

# The second and the last group have no rows.
SIZES = {"some": [3, 0, 8, 1, 0], "none": [0, 0], "one": [9]}


@pytest.fixture(params=["by group", "in one call"], autouse=True)
def way(request, monkeypatch):
    """The call that CUDA is given runs on a CPU too; there it is no faster."""
    if request.param == "in one call":
        monkeypatch.setattr(grouped, "_in_one_call", lambda wide, groups, *widths: len(wide) > 0)
    return request.param


def relative(got, wanted):
    return float((got.double() - wanted).norm() / wanted.norm().clamp_min(1e-30))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("sizes", SIZES)
def test_the_four_products(sizes, transposed, dtype, way):
    torch.manual_seed(0)
    counts = SIZES[sizes]
    groups = Groups(torch.tensor(counts, dtype=torch.int32).cumsum(0, dtype=torch.int32))
    x = torch.randn(sum(counts), 16).to(dtype)
    weight = torch.randn(len(counts), 16, 24).to(dtype)
    if transposed:
        weight = weight.mT.contiguous().mT
    a = torch.randn(len(counts), 8, 16)
    h = torch.randn(sum(counts), 8)
    y = x.clone()
    grouped_add_widened(y, h, a, 0.5, groups)
    found = [grouped_product(x, weight, groups), grouped_narrow(x, a, groups), y]
    wanted = [
        torch.cat([part @ matrix for part, matrix in zip(
            left.double().split(counts), right.double(), strict=True)])
        for left, right in ((x, weight), (x, a.mT), (h, a))]
    wanted[2] = x.double() + 0.5 * wanted[2]
    gradient = grouped_gradient(h, x, groups)
    parts = zip(h.double().split(counts), x.double().split(counts), strict=True)
    limit = 1e-6 if dtype == torch.float32 else 6e-3
    for got, exact in zip([*found, gradient], [*wanted, torch.stack([
            left.t() @ right for left, right in parts])], strict=True):
        assert got.shape == exact.shape
        assert relative(got, exact) < limit
    assert found[1].dtype == gradient.dtype == torch.float32
    if dtype == torch.bfloat16 and way == "by group":  # thin sums are float32
        assert relative(found[1], wanted[1]) < 1e-6


def test_one_group_is_all_rows_on_the_device_they_are_on():
    x = torch.randn(5, 3)
    assert Groups.one(x).rows == [(0, slice(0, 5))]
    assert Groups.one(x[:0]).rows == []
