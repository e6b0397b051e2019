"""The work that all tools do: a Llama of random weights, its tokenizer, and chat rows of GSM8K.

    python -m peers.work --data GSM8K.jsonl --to FOLDER --batch 8 --steps 20

It is run in an environment that has transformers. The same arguments write the same bytes.
"""

import argparse
import json
from pathlib import Path
from typing import Any

PAD, START, END = "<|pad|>", "<|im_start|>", "<|im_end|>"
# ChatML. Nothing follows the last turn's end, so that an answer ends with its end-of-turn token in
# every tool, whether or not the tool trains what a template puts behind it.
TEMPLATE = (
    "{% for message in messages %}{% if not loop.first %}{{ '\\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\n<|im_start|>assistant\\n' }}{% endif %}"
)
VOCABULARY = 32_000


def write_tokenizer(texts: list[str], folder: Path) -> None:
    """A byte-level BPE trained on `texts`. Files that any version of transformers reads."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=VOCABULARY, min_frequency=1, special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "PreTrainedTokenizerFast", "chat_template": TEMPLATE,
        "eos_token": END, "pad_token": PAD, "model_max_length": 4096,
        "clean_up_tokenization_spaces": False,
        "added_tokens_decoder": {
            str(number): {"content": text, "special": True, "lstrip": False, "rstrip": False,
                          "normalized": False, "single_word": False}
            for number, text in enumerate([PAD, START, END])},
    }, indent=1))
    (folder / "special_tokens_map.json").write_text(
        json.dumps({"eos_token": END, "pad_token": PAD}))


def write_model(folder: Path, size: str, seed: int) -> None:
    """A Llama of about 110 million weights (or, for a trial, of 5), float32."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    width, inner, layers, heads = {"full": (768, 2048, 12, 12), "trial": (128, 352, 2, 2)}[size]
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=width, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=heads, vocab_size=VOCABULARY,
        max_position_embeddings=4096, tie_word_embeddings=True, dtype=torch.float32,
        bos_token_id=None, eos_token_id=2, pad_token_id=0)
    LlamaForCausalLM(config).save_pretrained(folder)


def rendered(row: dict[str, Any], tokenizer: Any) -> tuple[list[int], list[int]]:
    """Token ids, and labels: the answer with its end of turn, -100 elsewhere."""
    question, answer = row["messages"]
    prompt = (f"{START}{question['role']}\n{question['content']}{END}\n"
              f"{START}{answer['role']}\n")
    before = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    after = tokenizer(answer["content"] + END, add_special_tokens=False)["input_ids"]
    return before + after, [-100] * len(before) + after


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--size", default="full")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    from transformers import AutoTokenizer

    folder = arguments.to
    model = folder / "model"
    model.mkdir(parents=True, exist_ok=True)
    lines = [json.loads(line) for line in arguments.data.read_text(encoding="utf-8").splitlines()]
    number = arguments.batch * arguments.steps
    if len(lines) < number:
        raise SystemExit(f"{arguments.data} has {len(lines)} rows; {number} are needed.")
    write_tokenizer([line[key] for line in lines for key in ("question", "answer")], model)
    write_model(model, arguments.size, arguments.seed)
    rows = [{"messages": [{"role": "user", "content": line["question"]},
                          {"role": "assistant", "content": line["answer"]}]}
            for line in lines[:number]]
    tokenizer = AutoTokenizer.from_pretrained(model)
    lengths, supervised = [], 0
    for row in rows:
        ids, labels = rendered(row, tokenizer)
        template = tokenizer.apply_chat_template(row["messages"], tokenize=False)
        assert tokenizer(template, add_special_tokens=False)["input_ids"] == ids, row
        assert min(ids) > 0, "padding within a row"
        lengths.append(len(ids))
        supervised += sum(label != -100 for label in labels)
    (folder / "rows.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = json.loads((model / "config.json").read_text())
    width, inner = config["hidden_size"], config["intermediate_size"]
    (folder / "work.json").write_text(json.dumps({
        "batch": arguments.batch, "steps": arguments.steps, "vocabulary": VOCABULARY,
        "pad_id": tokenizer.pad_token_id, "tokens": sum(lengths),
        "supervised_tokens": supervised, "longest_tokens": max(lengths),
        # Of rank 16 on four square and three oblong layers: in + out each.
        "trained_parameters": 16 * config["num_hidden_layers"] * (8 * width
                                                                  + 3 * (width + inner)),
        "seed": arguments.seed}))


if __name__ == "__main__":
    main()
