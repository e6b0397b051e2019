"""Attention by document against one dense mask over the row."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lorafit.kernels.packed_attention import (
    Documents,
    packed_attention,
    reference_packed_attention,
)


def run(function, lengths, heads, key_heads, window, scale):
    torch.manual_seed(0)
    tokens = sum(lengths)
    leaves = [torch.randn(1, h, tokens, 8, dtype=torch.float64, requires_grad=True)
              for h in (heads, key_heads, key_heads)]
    out = function(*leaves, Documents(tuple(lengths)), scale=scale, window=window)
    weights = torch.randn(out.shape, dtype=torch.float64,
                          generator=torch.Generator().manual_seed(1))
    (out * weights).sum().backward()
    return [out.detach(), *(leaf.grad for leaf in leaves)]


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5),
       groups=st.integers(1, 3), key_heads=st.integers(1, 2),
       window=st.none() | st.integers(1, 10), scale=st.sampled_from([None, 0.1]))
def test_it_is_the_reference(lengths, groups, key_heads, window, scale):
    arguments = (lengths, groups * key_heads, key_heads, window, scale)
    for got, wanted in zip(run(packed_attention, *arguments),
                           run(reference_packed_attention, *arguments), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("lengths", [(4,), (2, 5, 1)])
def test_the_output_has_a_row_a_token(lengths):
    q = torch.randn(1, 4, sum(lengths), 8)
    k = torch.randn(1, 2, sum(lengths), 8)
    assert packed_attention(q, k, k, Documents(lengths)).shape == (1, sum(lengths), 4, 8)
