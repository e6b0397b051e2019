"""Greedy answers of llama.cpp. See engines/engine.py for the two files.

Keys and values are kept in f32: with llama.cpp's usual f16 a near tie goes another way. IN may also
hold `texts`; OUT then has what the base's vocabulary makes of each, special tokens parsed
(`tokens`).
"""

import json
import sys
import urllib.request
from importlib.metadata import version
from pathlib import Path
from typing import Any

import xllamacpp


def file_in(path: str, name: str) -> str:
    return str(Path(path) / name if Path(path).is_dir() else path)


def serve(model: str, adapters: list[str]) -> Any:
    parameters = xllamacpp.CommonParams()
    parameters.model.path = file_in(model, "model.gguf")
    parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    parameters.n_ctx, parameters.n_parallel, parameters.n_gpu_layers = 1024, 1, 0
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    parameters.warmup = parameters.cache_prompt = False
    parameters.lora_init_without_apply = True
    parameters.lora_adapters = [
        xllamacpp.CommonAdapterLoraInfo(file_in(path, "adapter.gguf"), 0.0) for path in adapters]
    return xllamacpp.Server(parameters)


def ask(server: Any, place: str, request: dict[str, Any]) -> Any:
    call = urllib.request.Request(f"{server.listening_address}{place}",
                                  json.dumps(request).encode(),
                                  {"Content-Type": "application/json"})
    with urllib.request.urlopen(call) as reply:
        return json.loads(reply.read())


def answers(server: Any, prompts: list[list[int]], new_tokens: int,
            scales: list[float]) -> list[list[int]]:
    lora = [{"id": number, "scale": scale} for number, scale in enumerate(scales)]
    return [answer(server, prompt, new_tokens, lora) for prompt in prompts]


def answer(server: Any, prompt: list[int], new_tokens: int, lora: list[Any]) -> list[int]:
    """The server stops at an end of text; it is asked to go on from there."""
    found: list[int] = []
    while len(found) < new_tokens:
        tokens = ask(server, "/completion", {
            "prompt": prompt + found, "n_predict": new_tokens - len(found), "samplers": ["top_k"],
            "top_k": 1, "temperature": 0.0, "return_tokens": True, "cache_prompt": False,
            "lora": lora})["tokens"]
        if not tokens:
            raise SystemExit(f"llama.cpp does not say which token ended {prompt + found}")
        found += tokens
    return found


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    prompts, new_tokens, names = request["prompts"], request["new_tokens"], [*request["adapters"]]
    server = serve(request["base"], [request["adapters"][name] for name in names])
    found = {name: answers(server, prompts, new_tokens, [float(name == other) for other in names])
             for name in names}
    result = {"base": answers(server, prompts, new_tokens, [0.0] * len(names)),
              "engine": f"llama.cpp in xllamacpp {version('xllamacpp')}",
              "how": "llama-server's /completion, adapters by id with scale 1, f32 keys and values"}
    if "texts" in request:
        result["tokens"] = [ask(server, "/tokenize", {
            "content": text, "add_special": False, "parse_special": True})["tokens"]
            for text in request["texts"]]
    for name, path in request["merged"].items():
        found[f"merged:{name}"] = answers(serve(path, []), prompts, new_tokens, [])
    Path(sys.argv[2]).write_text(json.dumps({"answers": found, **result}))


if __name__ == "__main__":
    main()
