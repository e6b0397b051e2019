"""How much memory a merge takes, under a limit and beside peft's own.

    python scripts/benchmark_merge.py [--layers 24] [--width 2048] [--allow-mb 400]

Writes a Llama of random bfloat16 weights in several files and a random adapter of rank 16 on all
its linear layers, then merges them twice, each in a process of its own:

- lorafit's merge with `--check tensors`, in a process that may allocate no more than --allow-mb
  after its imports (RLIMIT_DATA, so the system refuses more); the model is several times larger;
- peft's load, merge_and_unload and save, without a limit.

Shown are the sizes and each process's largest resident set, less what the imports took. The two
merged models are compared tensor by tensor at the end: in bfloat16 they may differ by one rounding.
Linux only.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

RANK = 16
LINEAR = {"self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"),
          "mlp": ("gate_proj", "up_proj", "down_proj")}
_MEMORY = """
import json, resource, sys
def own_bytes(key):
    text = open("/proc/self/status").read()
    return int(text.split(key + ":")[1].split()[0]) * 1024
"""
_LORAFIT = _MEMORY + """
from pathlib import Path
import peft, torch
from lorafit import libraries
libraries.settle(needs_hub=False)
from lorafit.export.merge import merge
from lorafit.model.trained import open_adapter
base, adapter, output, allowed = sys.argv[1:]
torch.set_num_threads(1)  # every thread of the product allocates
torch.randn(8, 8) @ torch.randn(8, 8)
before, limit = own_bytes("VmRSS"), own_bytes("VmData") + int(allowed)
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
found = merge(open_adapter(Path(adapter), base), Path(output), by="tensors").tensors
print(json.dumps({"peak_bytes": own_bytes("VmHWM") - before, "updated": found.updated,
                  "unchanged": found.unchanged, "largest_relative": found.largest_relative}))
"""
_PEFT = _MEMORY + """
import peft, torch
from transformers import AutoModelForCausalLM
base, adapter, output, _ = sys.argv[1:]
before = own_bytes("VmRSS")
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
model = peft.PeftModel.from_pretrained(model, adapter).merge_and_unload()
model.save_pretrained(output)
print(json.dumps({"peak_bytes": own_bytes("VmHWM") - before}))
"""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=24, help="(default: %(default)s)")
    parser.add_argument("--width", type=int, default=2048, help="(default: %(default)s)")
    parser.add_argument("--vocabulary", type=int, default=32_000, help="(default: %(default)s)")
    parser.add_argument("--shard-mb", type=int, default=400,
                        help="largest file of the base (default: %(default)s)")
    parser.add_argument("--allow-mb", type=int, default=400,
                        help="what the merge may allocate (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the figures here too")
    return parser.parse_args()


def write_base(folder: Path, layers: int, width: int, vocabulary: int, shard_bytes: int) -> None:
    """A Llama as transformers saves it, tokenizer included, made a file at a time."""
    from transformers import AutoTokenizer, LlamaConfig

    from lorafit.model.base import TINY

    config = LlamaConfig(
        hidden_size=width, intermediate_size=11 * width // 4, num_hidden_layers=layers,
        num_attention_heads=width // 64, num_key_value_heads=width // 64, vocab_size=vocabulary,
        tie_word_embeddings=False, dtype="bfloat16", architectures=["LlamaForCausalLM"])
    config.save_pretrained(folder)
    AutoTokenizer.from_pretrained(TINY).save_pretrained(folder)
    shapes = {"model.embed_tokens.weight": (vocabulary, width)}
    for n in range(layers):
        start = f"model.layers.{n}"
        shapes |= {f"{start}.{name}": shape for name, shape in linear_shapes(width).items()}
        shapes |= {f"{start}.{norm}.weight": (width,)
                   for norm in ("input_layernorm", "post_attention_layernorm")}
    shapes |= {"model.norm.weight": (width,), "lm_head.weight": (vocabulary, width)}
    generator = torch.Generator().manual_seed(0)
    files: list[dict[str, torch.Tensor]] = [{}]
    weight_map: dict[str, str] = {}
    for name, shape in shapes.items():
        if sum(tensor.nbytes for tensor in files[-1].values()) > shard_bytes:
            _save(folder, files, weight_map)
            files.append({})
        files[-1][name] = (0.02 * torch.randn(shape, generator=generator)).bfloat16()
    _save(folder, files, weight_map)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map}))


def linear_shapes(width: int) -> dict[str, tuple[int, int]]:
    inner = 11 * width // 4
    shapes = {"down_proj": (width, inner), "gate_proj": (inner, width), "up_proj": (inner, width)}
    return {f"{block}.{word}.weight": shapes.get(word, (width, width))
            for block, words in LINEAR.items() for word in words}


def _save(folder: Path, files: list[dict[str, torch.Tensor]], weight_map: dict[str, str]) -> None:
    """Write the last file, and let go of its tensors."""
    name = f"model-{len(files):05d}.safetensors"
    save_file(files[-1], folder / name, metadata={"format": "pt"})
    weight_map |= dict.fromkeys(files[-1], name)
    files[-1] = {}


def write_adapter(folder: Path, base: Path, layers: int, width: int) -> None:
    from peft import LoraConfig

    words = [word for block in LINEAR.values() for word in block]
    LoraConfig(task_type="CAUSAL_LM", r=RANK, lora_alpha=32, target_modules=words,
               base_model_name_or_path=str(base), inference_mode=True).save_pretrained(folder)
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for n in range(layers):
        for name, (rows, columns) in linear_shapes(width).items():
            module = f"base_model.model.model.layers.{n}.{name.removesuffix('.weight')}"
            tensors[f"{module}.lora_A.weight"] = torch.randn(RANK, columns, generator=generator)
            tensors[f"{module}.lora_B.weight"] = 0.001 * torch.randn(rows, RANK,
                                                                     generator=generator)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def run(script: str, *arguments: object) -> dict[str, float]:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script, *map(str, arguments)],
                          capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"the merge failed:\n{done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def largest_difference(one: Path, other: Path) -> float:
    """‖Δ‖ / ‖one‖ of the tensor in which two models differ most."""
    def files(folder: Path) -> dict[str, Path]:
        found = {}
        for file in folder.glob("*.safetensors"):
            with safe_open(file, "pt") as reader:
                found |= dict.fromkeys(reader.keys(), file)
        return found

    mine, theirs = files(one), files(other)
    assert mine.keys() == theirs.keys()
    worst = 0.0
    for name in mine:
        with safe_open(mine[name], "pt") as a, safe_open(theirs[name], "pt") as b:
            x, y = a.get_tensor(name).float(), b.get_tensor(name).float()
        worst = max(worst, float((x - y).norm() / x.norm()))
    return worst


def main() -> None:
    arguments = parse()
    megabyte = 1_000_000
    with tempfile.TemporaryDirectory(prefix="benchmark-merge-") as name:
        work = Path(name)
        base, adapter = work / "base", work / "adapter"
        base.mkdir()
        write_base(base, arguments.layers, arguments.width, arguments.vocabulary,
                   arguments.shard_mb * megabyte)
        write_adapter(adapter, base, arguments.layers, arguments.width)
        sizes = [file.stat().st_size for file in base.glob("*.safetensors")]
        ours = run(_LORAFIT, base, adapter, work / "lorafit", arguments.allow_mb * megabyte)
        theirs = run(_PEFT, base, adapter, work / "peft", 0)
        apart = largest_difference(work / "lorafit", work / "peft")
        shutil.rmtree(work / "lorafit")
    figures = {
        "model_mb": sum(sizes) / megabyte, "files": len(sizes),
        "largest_file_mb": max(sizes) / megabyte,
        "largest_tensor_mb": max(arguments.vocabulary * arguments.width * 2,
                                 11 * arguments.width**2 // 2) / megabyte,
        "allowed_mb": arguments.allow_mb, "lorafit_peak_mb": ours["peak_bytes"] / megabyte,
        "peft_peak_mb": theirs["peak_bytes"] / megabyte, "tensors_updated": ours["updated"],
        "tensors_unchanged": ours["unchanged"], "off_by": ours["largest_relative"],
        "lorafit_against_peft": apart,
    }
    assert ours["updated"] == 7 * arguments.layers
    assert apart < torch.finfo(torch.bfloat16).eps
    for key, value in figures.items():
        print(f"{key:22} {value:,.4g}" if value < 1 else f"{key:22} {value:,.0f}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
