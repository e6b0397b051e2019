"""A directory is looked at before a library reads it: what is refused, and what is let through."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lorafit.errors import UserError
from lorafit.model import local_files
from lorafit.model.base import TINY, load_config
from lorafit.model.foreign_code import foreign_code, keep_permission, refuse_unread_code
from lorafit.model.intake import check_adapter_files, check_model_files, weight_files
from lorafit.model.tensor_headers import check_tensor_file
from lorafit.recipe.schema import Model


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TINY, tmp_path / "base"))


@pytest.fixture
def adapter(tmp_path: Path) -> Callable[..., Path]:
    def make(**config: Any) -> Path:
        folder = tmp_path / "adapter"
        folder.mkdir(exist_ok=True)
        save_file({"a.lora_A.weight": torch.ones(2, 3)}, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **config}))
        return folder

    return make


def refused(check: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as caught:
        check()
    assert all(problem.remedy for problem in caught.value.problems)
    return str(caught.value)


def set_in(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float8_e4m3fn", "uint8", "bool"])
def test_what_the_library_writes_is_let_through(tmp_path: Path, dtype: str) -> None:
    file = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(3, 5).to(getattr(torch, dtype)), "empty": torch.zeros(0, 4),
               "number": torch.tensor(1.0)}, file, metadata={"format": "pt"})
    assert {"a", "empty", "number"} <= check_tensor_file(file).keys()


def test_every_cut_of_a_file_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(4), "b": torch.ones(2)}, file)
    whole = file.read_bytes()
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        assert "is damaged" in refused(lambda: check_tensor_file(file))
    file.write_bytes(whole + b"\0")
    assert "is damaged" in refused(lambda: check_tensor_file(file))


def test_a_link_within_the_hubs_cache_is_let_through(tmp_path: Path) -> None:
    repo = tmp_path / "models--a--b"
    folder, blobs = repo / "snapshots" / ("c" * 40), repo / "blobs"
    folder.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(TINY.iterdir())):
        shutil.copy(file, blobs / str(number))
        (folder / file.name).symlink_to(f"../../blobs/{number}")
    check_model_files(folder)
    outside = tmp_path / "outside"
    shutil.copy(TINY / "config.json", outside)
    (blobs / "x").symlink_to(outside)
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("../../blobs/x")
    assert "leads out of the directory" in refused(lambda: check_model_files(folder))


@pytest.mark.parametrize(("file", "key", "value", "said"), [
    ("config.json", "auto_map", {"AutoConfig": "x.Y"}, "trust_remote_code=true"),
    ("tokenizer_config.json", "auto_map", ["x.Y", None], "trust_remote_code=true"),
    ("config.json", "_attn_implementation_internal", "a/b", "CVE-2026-4372"),
    ("config.json", "text_config", {"a": [{"_x_internal": 1}]}, "text_config.a[0]._x_internal"),
    ("config.json", "attn_implementation", "a/b@main", "a kernel on the hub"),
    ("config.json", "sub", {"experts_implementation": {"": "a/b"}}, "a kernel on the hub"),
    ("config.json", "sub", {"trust_remote_code": True}, "which only the user can"),
    ("tokenizer_config.json", "tokenizer_class", "os.system", "no class of tokenizers"),
    ("config.json", "transformers_weights", "../w.safetensors", "no safetensors file"),
    ("config.json", "transformers_weights", "w.bin", "a pickle"),
])
def test_keys_that_lead_to_code_are_refused(base: Path, file: str, key: str, value: Any,
                                            said: str) -> None:
    set_in(base / file, **{key: value})
    assert said in refused(lambda: check_model_files(base))


@pytest.mark.parametrize(("file", "values"), [
    ("config.json", {"auto_map": None, "_name_or_path": "/home/a/b", "attn_implementation": "sdpa",
                     "rope_scaling": {"type": "yarn"}, "use_cache": True}),
    ("tokenizer_config.json", {"special_tokens_map_file": "/root/.cache/x.json",
                               "tokenizer_class": "PreTrainedTokenizerFast"}),
])
def test_keys_that_models_have_are_let_through(base: Path, file: str,
                                               values: dict[str, Any]) -> None:
    set_in(base / file, **values)
    check_model_files(base)


@pytest.mark.parametrize(("config", "said"), [
    ({"auto_mapping": {"parent_library": "os", "base_model_class": "system"}}, "import 'os'"),
    ({"auto_mapping": {"parent_library": "transformers_modules.x"}}, "import"),
    ({"megatron_config": {}, "megatron_core": "evil"}, "Megatron"),
    ({"adapters": {"a": "b/c"}}, "other adapters"),
    ({"corda_config": {"cache_file": "x.pt"}}, "corda_config.cache_file"),
    ({"lorafit_method": "lora"}, "no method of lorafit"),
    ({"target_modules": "(.*)*x"}, "take for ever"),
    ({"target_modules": "("}, "that is none"),
    ({"rank_pattern": {"(a|a)*b": 4}}, "take for ever"),
    ({"base_model_name_or_path": 5}, "no text"),
])
def test_what_peft_would_import_or_load_is_refused(adapter: Callable[..., Path],
                                                   config: dict[str, Any], said: str) -> None:
    assert said in refused(lambda: check_adapter_files(adapter(**config)))


def test_what_peft_writes_is_let_through(adapter: Callable[..., Path]) -> None:
    from peft import LoraConfig

    config = LoraConfig(target_modules=r".*\.(q_proj|v_proj)$", task_type="CAUSAL_LM").to_dict()
    config = {key: value for key, value in config.items() if not isinstance(value, set)}
    auto = {"base_model_class": "LlamaForCausalLM",
            "parent_library": "transformers.models.llama.modeling_llama"}
    written = adapter(**json.loads(json.dumps(config, default=str)) | {"auto_mapping": auto})
    assert check_adapter_files(written)["peft_type"] == "LORA"


def test_an_index_names_plain_safetensors_files_only(base: Path) -> None:
    for name in ("/etc/x.safetensors", "../x.safetensors", "a/x.safetensors", ".safetensors",
                 "x.bin", "x.safetensors\n", "a\\x.safetensors"):
        (base / "model.safetensors.index.json").write_text(
            json.dumps({"weight_map": {"a": name}}))
        assert repr(name) in refused(lambda: weight_files(base))


def test_code_runs_only_where_it_was_allowed_as_it_is(
        base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAFIT_CACHE", str(tmp_path / "cache"))
    set_in(base / "config.json", auto_map={"AutoConfig": "own.Config"}, model_type="own-type")
    (base / "own.py").write_text(
        "from transformers import LlamaConfig\n"
        "class Config(LlamaConfig):\n    model_type = 'own-type'\n")
    plain = Model(base=str(base))
    assert "trust_remote_code=true" in refused(lambda: load_config(plain))
    trusted = plain.model_copy(update={"trust_remote_code": True})
    assert "nobody has allowed" in refused(lambda: refuse_unread_code(trusted))
    code = foreign_code(trusted)
    assert (code.files, code.source) == (["own.py"], str(base))
    keep_permission(code)
    refuse_unread_code(trusted)
    assert type(load_config(trusted)).__name__ == "Config"
    (base / "own.py").write_text((base / "own.py").read_text() + "# changed\n")
    assert "nobody has allowed" in refused(lambda: refuse_unread_code(trusted))


def test_code_of_another_repository_is_refused_even_where_code_may_run(base: Path) -> None:
    set_in(base / "config.json", auto_map={"AutoConfig": "a/b--x.Y"})
    assert "another repository" in refused(
        lambda: check_model_files(base, may_run_code=True))


def test_a_directory_is_looked_at_again_when_it_has_changed(base: Path) -> None:
    section = Model(base=str(base))
    assert local_files.local_files(section, weights=True) == (base, None)
    weights = base / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert "is damaged" in refused(lambda: local_files.local_files(section, weights=True))
