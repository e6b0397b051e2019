"""Files written tensor by tensor are what the safetensors library reads, and vice versa."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from lorafit.errors import UserError
from lorafit.export.tensor_files import stored_tensors, written

_DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool]
_TENSORS = st.dictionaries(
    st.text(min_size=1, max_size=12).filter(lambda name: name != "__metadata__"
                                            and name.isprintable()),
    st.tuples(st.sampled_from(_DTYPES), st.lists(st.integers(0, 5), max_size=3)), max_size=6)


@given(_TENSORS)
@settings(max_examples=60, deadline=None)
def test_what_is_written_is_what_the_library_reads(tmp_path_factory, shapes):
    tensors = {name: torch.randint(0, 2, shape).to(dtype) for name, (dtype, shape)
               in shapes.items()}
    path = tmp_path_factory.mktemp("files") / "ours.safetensors"
    with written(path, tensors) as writer:
        for name, tensor in tensors.items():
            writer.add(name, tensor.dtype, tuple(tensor.shape), [tensor])
    for found in (load_file(path), {name: stored.read()
                                    for name, stored in stored_tensors(path).items()}):
        assert found.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert found[name].dtype == tensor.dtype
            assert torch.equal(found[name], tensor)
    path.unlink()


def test_rows_and_the_librarys_own_files_are_read(tmp_path):
    weight = torch.randn(7, 3)
    save_file({"weight": weight, "other": torch.ones(2)}, tmp_path / "a.safetensors")
    stored = stored_tensors(tmp_path / "a.safetensors")["weight"]
    assert torch.equal(stored.read(2, 4), weight[2:6])
    whole = (tmp_path / "a.safetensors").read_bytes()
    for spoilt in (whole[:-1], b"no safetensors at all", whole[:4]):
        (tmp_path / "b.safetensors").write_bytes(spoilt)
        with pytest.raises(UserError, match="damaged"):
            stored_tensors(tmp_path / "b.safetensors")
