"""Adapter directories, as merge, export-adapter, inspect, generate, eval and serve read them."""

from collections.abc import Callable
from typing import Any

from reliability.hostile.artifact import Artifact, Place, changed, pickled, safetensors

_WEIGHTS, _CONFIG = "adapter_model.safetensors", "adapter_config.json"
_VERBS: tuple[list[str], ...] = (
    ["merge", "{evil}", "-o", "out"], ["export-adapter", "{evil}", "-o", "out"],
    ["inspect", "{evil}"], ["generate", "{evil}", "--prompt", "hi"],
    ["serve", "evil={evil}", "--dry-run"], ["verify", "{evil}", "--against", "{evil}"])


def _call(verb: int, place: Place) -> list[str]:
    return [word.replace("{evil}", str(place.evil)) for word in _VERBS[verb % len(_VERBS)]]


def _config(verb: int, **values: Any) -> Callable[[Place], list[str]]:
    def make(place: Place) -> list[str]:
        changed(place.adapter() / _CONFIG, **values)
        place.module("evil.py")
        return _call(verb, place)

    return make


def _weights(verb: int, content: Callable[[Place], bytes]) -> Callable[[Place], list[str]]:
    def make(place: Place) -> list[str]:
        (place.adapter() / _WEIGHTS).write_bytes(content(place))
        return _call(verb, place)

    return make


def _pickle_only(place: Place) -> list[str]:
    (place.adapter() / _WEIGHTS).unlink()
    (place.evil / "adapter_model.bin").write_bytes(pickled(place.canary))
    return _call(0, place)


def _link_out(place: Place) -> list[str]:
    elsewhere = place.evil.parent / "elsewhere.safetensors"
    (place.adapter() / _WEIGHTS).rename(elsewhere)
    (place.evil / _WEIGHTS).symlink_to(elsewhere)
    return _call(1, place)


def _hostile_base(place: Place) -> list[str]:
    base = place.evil.parent / "evil-base"
    changed(place.adapter() / _CONFIG, base_model_name_or_path=str(base))
    inner = Place(place.work, base, place.canary, place.trained)
    inner.base()
    inner.module("evil.py")
    changed(base / "config.json", auto_map={"AutoModelForCausalLM": "evil.Model"})
    return _call(3, place)


def _combined(place: Place) -> list[str]:
    changed(place.adapter() / _CONFIG, auto_mapping={"base_model_class": "Model",
                                                     "parent_library": "evil"})
    return ["combine", str(place.trained), str(place.evil), "-o", "out"]


ARTIFACTS = (
    Artifact("an adapter whose weights are a pickle", "pickle", _pickle_only),
    Artifact("a pickle that is called safetensors", "pickle",
             _weights(1, lambda place: pickled(place.canary))),
    Artifact("an adapter with a huge header", "header",
             _weights(2, lambda _: safetensors({}, length=1 << 50))),
    Artifact("an adapter that is cut short", "header",
             _weights(3, lambda place: (place.trained / "adapter" / _WEIGHTS).read_bytes()[:-9])),
    Artifact("an adapter that is a link out", "traversal", _link_out),
    Artifact("auto_map in adapter_config.json", "auto_map",
             _config(4, auto_map={"AutoModel": "evil.Model"})),
    Artifact("auto_mapping that imports a module", "import", _config(0, auto_mapping={
        "base_model_class": "Model", "parent_library": "evil"})),
    Artifact("auto_mapping that imports fetched code", "import", _config(5, auto_mapping={
        "base_model_class": "Model", "parent_library": "transformers_modules.evil"})),
    Artifact("auto_mapping in one of two that are combined", "import", _combined),
    Artifact("a Megatron library to import", "import",
             _config(1, megatron_config={"a": 1}, megatron_core="evil")),
    Artifact("other adapters to load", "import",
             _config(2, peft_type="XLORA", adapters={"a": "somebody/evil"})),
    Artifact("a pickle of covariances to load", "pickle",
             _config(0, corda_config={"covariance_file": "/tmp/evil.pt"})),
    Artifact("a prompt by a tokenizer with code", "auto_map", _config(
        3, peft_type="PROMPT_TUNING", prompt_tuning_init="TEXT", inference_mode=False,
        tokenizer_name_or_path="somebody/evil", tokenizer_kwargs={"trust_remote_code": True})),
    Artifact("a method that climbs out", "import", _config(1, lorafit_method="..evil")),
    Artifact("a method that is any module", "import", _config(1, lorafit_method="starts")),
    Artifact("a kind that nobody knows", "import", _config(0, peft_type="__import__")),
    Artifact("a pattern that takes for ever", "bomb", _config(3, target_modules="([a-z0-9_.]+)+!")),
    Artifact("a rank of a thousand million", "bomb", _config(3, r=10**9)),
    Artifact("a base that is a list", "import", _config(4, base_model_name_or_path=["x"])),
    Artifact("a base with code of its own", "auto_map", _hostile_base),
    Artifact("a private key in an adapter", "private key",
             _config(5, _attn_implementation_internal="somebody/evil")),
)
