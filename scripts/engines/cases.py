"""The bases and adapters of the proof, each trained here by lorafit, and what each answers.

Greedy answers say something only where the most likely token is clearly so. So the bases are small,
but trained: the embedded one as it comes (a Llama), and other architectures of its size that are
taught sums and sentences here. An adapter then learns to answer sums in other words.
"""

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ASKED = [f"How much is {a} and {b}?" for a, b in zip(range(3, 30, 2), range(40, 12, -2),
                                                     strict=True)]
TOLD = ["Once upon a time", "Anna went to the market and", "The capital of", "To add two numbers,",
        "The small house by the sea", "In the morning the old man", "A friend of mine said that"]
PROMPTS = [*ASKED, *TOLD]

# Kinds of adapters: sections of a recipe.
KINDS: dict[str, dict[str, Any]] = {
    "LoRA": {"rank": 8, "alpha": 16},
    "rsLoRA": {"rank": 16, "alpha": 16, "rslora": True},
    "ranks and alphas by layer": {"rank": 4, "alpha": 8, "rank_pattern": {"q_proj": 2},
                                  "alpha_pattern": {"v_proj": 3}},
    "some layers": {"rank": 4, "alpha": 8, "layers": [0, 2]},
    "q_proj and up_proj only": {"rank": 4, "alpha": 8, "target_modules": ["q_proj", "up_proj"]},
    "PiSSA": {"rank": 4, "alpha": 8, "init": "pissa"},
    "PaCA": {"method": "paca", "rank": 8},
    "DoRA": {"rank": 8, "alpha": 16, "dora": True},
    "trained output head": {"rank": 8, "alpha": 16, "target_modules": ["q_proj", "v_proj"],
                            "modules_to_save": ["lm_head"]},
    "bias of B": {"rank": 8, "alpha": 16, "target_modules": ["q_proj", "v_proj"],
                  "options": {"lora_bias": True}},
    "adapter on the embeddings": {"rank": 8, "alpha": 16,
                                  "target_modules": ["q_proj", "v_proj", "embed_tokens"]},
    "adapter on the output head": {"rank": 8, "alpha": 16,
                                   "target_modules": ["q_proj", "v_proj", "lm_head"]},
}


@dataclass(frozen=True)
class Base:
    """title: in the table. config: of an architecture that is taught here; None for the embedded
    base. tied: whether input and output embeddings are one weight."""

    title: str
    model_type: str
    tied: bool
    config: dict[str, Any]


_ALIKE = {"num_hidden_layers": 4, "hidden_size": 256, "intermediate_size": 640,
          "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64,
          "max_position_embeddings": 2048}
BASES: dict[str, Base] = {
    "llama-tied": Base("Llama, tied", "llama", True, {}),
    "llama": Base("Llama", "llama", False, {}),
    "qwen3-tied": Base("Qwen3, tied", "qwen3", True, _ALIKE),
    "qwen3": Base("Qwen3", "qwen3", False, _ALIKE),
    "gemma3": Base("Gemma 3, tied", "gemma3_text", True, _ALIKE | {
        "query_pre_attn_scalar": 64, "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention"] * 2}),
}


@dataclass(frozen=True)
class Case:
    """One trained adapter. answers: lorafit's own, of base + adapter as they were trained."""

    base: str
    kind: str
    run: Path
    answers: list[list[int]]

    @property
    def name(self) -> str:
        """A name that every program takes for an adapter."""
        return "".join(letter if letter.isalnum() else "-" for letter in self.kind.lower())


def write_base(name: str, folder: Path, steps: int, say: Callable[[str], None]) -> Path:
    """The model directory of a base, made unless it is there."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from lorafit.model.base import TINY
    from lorafit.run_dir import committed_directory

    path, base = folder / "bases" / name, BASES[name]
    if path.exists():
        return path
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    torch.manual_seed(0)
    if not base.config:
        model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
        if not base.tied:
            model.config.tie_word_embeddings = False
            own = model.get_output_embeddings().weight.detach().clone()
            own += 0.01 * own.std() * torch.randn_like(own)
            model.lm_head.weight = torch.nn.Parameter(own)
    else:
        say(f"teaching {base.title} {steps} steps of sums and sentences")
        config = AutoConfig.for_model(base.model_type, tie_word_embeddings=base.tied,
                                      vocab_size=len(tokenizer), **base.config)
        for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
            setattr(config, key, getattr(tokenizer, key))
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        teach(model, tokenizer, steps, say)
    with committed_directory(path) as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        _spell_out(partial / "config.json")
    return path


def _spell_out(path: Path) -> None:
    """In the words of before transformers 5, which some programs look for at the top."""
    values = json.loads(path.read_text(encoding="utf-8"))
    rope = values.get("rope_parameters") or {}
    full = rope.get("full_attention", rope)
    values.setdefault("rope_theta", full.get("rope_theta", 10000.0))
    if "sliding_attention" in rope:
        values.setdefault("rope_local_base_freq", rope["sliding_attention"]["rope_theta"])
        values.setdefault("sliding_window_pattern",
                          values["layer_types"].index("full_attention") + 1)
    path.write_text(json.dumps(values, indent=2), encoding="utf-8")


def teach(model: Any, tokenizer: Any, steps: int, say: Callable[[str], None]) -> None:
    """Trains all of a small model on sums and sentences, so that it is sure of what it says."""
    sentences = [
        "Once upon a time there was a small house by the sea, and in it lived an old woman.",
        "Anna went to the market and bought three red apples, two pears and a loaf of bread.",
        "The capital of France is Paris, and the capital of Italy is Rome.",
        "To add two numbers, first write them one under the other, then add them from the right.",
        "The small house by the sea was empty, and nobody knew who had built it.",
        "In the morning the old man took his boat and went out to catch fish.",
        "A friend of mine said that it would rain in the evening, and it did.",
    ]
    texts = [*(f"How much is {a} and {b}? It is {a + b}. Then comes {a + b + 1}, and then "
               f"{a + b + 2}." for a in range(2, 30) for b in range(2, 42)), *sentences * 40]
    ids = [tokenizer(text)["input_ids"] + [tokenizer.eos_token_id] for text in texts]
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    model.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1, (step + 1) / 20) * (1 - step / steps)
        chosen = torch.randint(len(ids), (16,)).tolist()
        longest = max(len(ids[row]) for row in chosen)
        batch = torch.tensor([ids[row] + [0] * (longest - len(ids[row])) for row in chosen])
        lengths = torch.tensor([[len(ids[row])] for row in chosen])
        there = torch.arange(longest)[None] < lengths
        loss = model(input_ids=batch, attention_mask=there.long(),
                     labels=batch.masked_fill(~there, -100)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 0 or step == steps - 1:
            say(f"step {step}: loss {float(loss.detach()):.3f}")
    model.eval()


def train_case(base: str, kind: str, folder: Path, base_path: Path, new_tokens: int) -> Case:
    """Trains an adapter on a base, unless it is there, and has lorafit's own model answer."""
    from lorafit.model.adapters.files import load_adapter
    from lorafit.model.base import load_base
    from lorafit.model.trained import open_adapter
    from lorafit.recipe.schema import Recipe
    from lorafit.train.run import train

    run = folder / "runs" / base / "".join(c if c.isalnum() else "-" for c in kind.lower())
    if not (run / "result.json").exists():
        shutil.rmtree(run, ignore_errors=True)
        rows = folder / "rows.jsonl"
        rows.write_text("".join(json.dumps({
            "prompt": f"How much is {a} and {b}?",
            "completion": f"Both together make {a + b}, one more than {a + b - 1}.",
        }) + "\n" for a in range(3, 27, 2) for b in range(12, 40, 4)), encoding="utf-8")
        train(Recipe.model_validate({
            "model": {"base": str(base_path), "dtype": "float32"}, "adapter": KINDS[kind],
            "data": {"train": str(rows), "eval_fraction": 0.1},
            "training": {"steps": 20, "batch_size": 8, "learning_rate": 5e-3, "keep": "last",
                         "eval_every": 20},
            "output": {"dir": str(run)},
        }), resume=False, announce=lambda record: None, started_s=time.perf_counter())
    source = open_adapter(run)
    model = load_adapter(load_base(source.model, "float32", "eager", torch.device("cpu")),
                         source.directory)
    return Case(base, kind, run, greedy(model, prompts(base_path), new_tokens))


def prompts(base_path: Path) -> list[list[int]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base_path)
    return [tokenizer(text)["input_ids"] for text in PROMPTS]


@torch.inference_mode()
def greedy(model: Any, given: Sequence[list[int]], new_tokens: int) -> list[list[int]]:
    """The most likely token at each place, computed anew from all that came before it."""
    answers = []
    for prompt in given:
        ids = list(prompt)
        for _ in range(new_tokens):
            ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False)
                           .logits[0, -1].argmax()))
        answers.append(ids[len(prompt):])
    return answers
