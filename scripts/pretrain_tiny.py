"""Pre-train the embedded base model ``tiny``: tokenizer, weights, measurements, README.

    python scripts/pretrain_tiny.py --out lorafit/model/tiny

The text comes from ``tiny_corpus.py``; nothing is downloaded.  The same options on the same machine
and versions give the same weights, bit for bit.  One step takes about 0.4 seconds on one core of an
Intel Xeon with AMX (a C++ compiler is needed for ``torch.compile``), the whole run 1 GB of memory.
With ``--state FILE`` a run that was stopped goes on from its last checkpoint when it is started
again with the same options, and ends with the weights of the uninterrupted one.

The weights are trained in float32 (matrix products in bfloat16) and rounded to bfloat16 at the end;
every number in the README is measured after the rounding.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import math
import os
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random

import numpy as np
import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

sys.path.insert(0, str(Path(__file__).parent))
import tiny_corpus

# Pad is 0; <|end|> ends a turn of a chat as well as a plain text.
PAD, END = "<|pad|>", "<|end|>"
SPECIAL = [PAD, END, "<|system|>", "<|user|>", "<|assistant|>"]
VOCABULARY = 4096
LENGTH = 512  # tokens in a row
# How the weights start (see wire_copying): the size of a token's random numbers, the sharpness of
# looking one position back and of looking for the same token, the strength of the copy, and the
# weights of the last norm.
SPREAD, PREVIOUS, MATCH, COPY, NORM = 0.3, 1.4, 3.0, 4.0, 0.2
WARM_UP = 100  # steps
SIZE_LIMIT = 8_000_000  # bytes of the whole directory
TOKENIZER_DOCUMENTS = 60_000  # about 14 MB of text, enough for 4096 tokens
HELD_OUT = 1_000_003  # added to the seed for text that is not trained on
KINDS_PER_EVALUATION = 400  # documents of each kind for the perplexity
PROMPTS = 100  # of each task for the accuracy

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}
{{- '<|assistant|>\\n' -}}
{%- generation -%}
{{- message['content'] + '<|end|>' -}}
{%- endgeneration -%}
{{- '\\n' -}}
{%- elif message['role'] in ('system', 'user') -%}
{{- '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' -}}
{%- else -%}
{{- raise_exception('unknown role: ' + (message['role'] | string)) -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|assistant|>\\n' -}}
{%- endif -%}
"""


def train_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that splits numbers into digits."""
    texts: list[str] = []
    for row in tiny_corpus.documents(seed, TOKENIZER_DOCUMENTS):
        texts += [content for _, content in row.messages] or [row.text.removesuffix(END)]
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ])  # fmt: skip
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token=PAD, eos_token=END, model_max_length=2048,
        additional_special_tokens=SPECIAL[2:], chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> np.ndarray:
    """The token ids of the texts, one after the other."""
    encoded = tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    return np.concatenate([np.array(row.ids, np.uint16) for row in encoded])


def text_batches(
    tokenizer: PreTrainedTokenizerFast, seed: int, batch: int
) -> Iterator[torch.Tensor]:
    """Endless batches of ``batch`` rows of `LENGTH` ids: fresh documents, one after the other."""
    source = tiny_corpus.documents(seed, sys.maxsize)
    ids = np.empty(0, np.uint16)
    while True:
        while len(ids) < batch * LENGTH:
            ids = np.concatenate(
                [ids, encode(tokenizer, [row.text for row in islice(source, 500)])]
            )
        yield torch.from_numpy(ids[: batch * LENGTH].astype(np.int64)).view(batch, LENGTH)
        ids = ids[batch * LENGTH :]


def copy_rows(seed: int, step: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows in which random tokens come again and again, and labels for all but the first time.

    They keep the copying circuit alive: the first thing that text teaches is which tokens are
    frequent, and unlearning to copy helps that for a while.
    """
    random = torch.Generator().manual_seed(seed * 1_000_000 + step)
    period = int(torch.randint(8, 100, (1,), generator=random))
    once = torch.randint(len(SPECIAL), VOCABULARY, (count, period), generator=random)
    ids = once.repeat(1, LENGTH // period + 1)[:, :LENGTH]
    labels = ids.clone()
    labels[:, :period] = -100
    return ids, labels


def build_model() -> LlamaForCausalLM:
    """The untrained model.

    Parameters: 4096 * 256 (embedding, also the output layer) = 1,048,576; in each of 4 layers
    256 * 256 * 2 (queries, output) + 256 * 128 * 2 (keys, values) + 256 * 640 * 3 (MLP) = 688,128
    and 512 of norms; 256 of the last norm.  Sum: 3,803,392, so 7.6 MB in bfloat16.
    """
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        rope_theta=10000.0,
        initializer_range=0.06,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=SPECIAL.index(END),
        pad_token_id=SPECIAL.index(PAD),
    )
    model = LlamaForCausalLM(config)
    wire_copying(model)
    return model


@torch.no_grad()
def wire_copying(model: LlamaForCausalLM) -> None:
    """Start from weights that already copy: "A B ... A" is followed by "B".

    Most of the small tasks need that circuit, and started from random weights this model showed no
    sign of it after 7 million tokens.  Training may change all of it; the other weights are random.

    The 256 numbers of a token are at first: one constant, 127 random ones that say which token it
    is, and 128 zeros.  Head 0 of layer 0 looks one position back and writes the first 64 of those
    into the zeros.  In layer 1, heads 0 and 2 look for a position whose previous token is the
    current one, and write the token that stands there onto the current one.  All else that would
    write to a token starts at zero.
    """
    config = model.config
    width, size = config.hidden_size, config.head_dim
    half = size // 2
    table = model.model.embed_tokens.weight
    table[:, 0] = 4 * SPREAD
    table[:, 1:128] = SPREAD * torch.randn(len(table), 127)
    table[:, 128:] = 0.02 * SPREAD * torch.randn(len(table), width - 128)
    # After the norm a token's vector has length 16, so its random numbers are about 16 / 12.
    unit = 16 / (SPREAD * math.sqrt(4**2 + 127))
    model.model.norm.weight.fill_(NORM)
    first, second = model.model.layers[0].self_attn, model.model.layers[1].self_attn
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    # The rotary angle of pair i is 10000^(-i/32) per position: the first 8 pairs tell positions
    # apart.  A query turned back by one position fits the key of the position before best.
    angle = 10000.0 ** (-torch.arange(8) / half)
    for weight, turn in ((first.k_proj.weight, 0 * angle), (first.q_proj.weight, -angle)):
        weight[:size] *= 0.1
        weight[:8, 0] = PREVIOUS * torch.cos(turn)
        weight[half : half + 8, 0] = PREVIOUS * torch.sin(turn)
    eye = torch.eye(size)
    first.v_proj.weight[:size] = 0
    first.v_proj.weight[:size, 1 : 1 + size] = eye
    first.o_proj.weight[:, :size] = 0
    first.o_proj.weight[128 : 128 + size, :size] = eye / unit
    # The last 12 pairs turn so slowly that they compare tokens at any distance.
    slow = torch.cat([torch.arange(half - 12, half), torch.arange(size - 12, size)])
    for group in range(2):
        known = torch.arange(1 + 24 * group, 25 + 24 * group)
        key, query = group * size, 2 * group * size
        second.k_proj.weight[key : key + size] *= 0.1
        second.q_proj.weight[query : query + size] *= 0.1
        second.k_proj.weight[key + slow, known + 127] = MATCH
        second.q_proj.weight[query + slow, known] = MATCH
        read = 1 + 63 * group
        second.v_proj.weight[key : key + size] = 0
        second.v_proj.weight[key : key + size, read : read + size] = eye
        second.o_proj.weight[:, query : query + size] = 0
        second.o_proj.weight[read : read + size, query : query + size] = COPY * eye / unit


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write a loadable model, rounded to bfloat16; the model in memory stays float32."""
    rounded = LlamaForCausalLM(copy.deepcopy(model.config)).to(torch.bfloat16)
    rounded.load_state_dict(model.state_dict())
    rounded.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.pad_token_id,
    )  # fmt: skip
    rounded.save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)
    tokenizer.save_pretrained(out)


def learning_rate(step: int, steps: int) -> float:
    """Share of the highest rate: a warm-up, then constant, then down to 0 in the last quarter.

    Before the last quarter nothing depends on ``steps``, so a run that was stopped there can go on
    with another number of steps.
    """
    return min(1.0, (step + 1) / WARM_UP, 4 * (steps - step) / steps)


def train(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, args: argparse.Namespace
) -> float:
    """Make one pass over the text; returns the seconds it took."""
    matrices = [weight for weight in model.parameters() if weight.dim() > 1]
    vectors = [weight for weight in model.parameters() if weight.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        lr=args.lr, betas=(0.9, 0.95), fused=True,
    )  # fmt: skip
    forward = torch.compile(model, dynamic=False)
    batches = text_batches(tokenizer, args.seed, args.batch)
    first, seconds, shown = 0, 0.0, 0.0
    state_file = args.state
    if state_file and state_file.exists():
        state = torch.load(state_file)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first, seconds = state["step"], state["seconds"]
        for _ in range(first):
            next(batches)
    start = time.time() - seconds
    for step in range(first, args.steps):
        for group in optimizer.param_groups:
            group["lr"] = args.lr * learning_rate(step, args.steps)
        ids = labels = next(batches)
        if args.copy_rows:
            copied, copied_labels = copy_rows(args.seed, step, args.copy_rows)
            ids, labels = torch.cat([ids, copied]), torch.cat([labels, copied_labels])
        with torch.autocast("cpu", torch.bfloat16):
            loss = forward(input_ids=ids, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        done = step + 1
        shown = loss.item() if step == first else 0.95 * shown + 0.05 * loss.item()
        if done % 50 == 0 or done == args.steps:
            seconds = time.time() - start
            print(f"step {done} of {args.steps} loss {shown:.4f} seconds {seconds:.0f}", flush=True)
        if done % args.save_every == 0:
            save(model, tokenizer, args.out)
            if state_file:
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                partial = state_file.with_name(state_file.name + ".partial")
                torch.save(state | {"step": done, "seconds": time.time() - start}, partial)
                partial.replace(state_file)
    return time.time() - start


@torch.no_grad()
def perplexities(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, seed: int
) -> dict[str, float]:
    """Perplexity per token of held-out text: of each kind, and of the mixture trained on."""
    rng = Random(seed)
    texts = {
        kind: [tiny_corpus.document(rng, kind).text for _ in range(KINDS_PER_EVALUATION)]
        for kind in tiny_corpus.KINDS
    }
    mixture = tiny_corpus.documents(seed, 3 * KINDS_PER_EVALUATION)
    texts["all"] = [row.text for row in mixture]
    result = {}
    for kind, rows in texts.items():
        ids = encode(tokenizer, rows).astype(np.int64)
        packed = torch.from_numpy(ids[: len(ids) // LENGTH * LENGTH]).view(-1, LENGTH)
        losses = [model(input_ids=part, labels=part).loss * len(part) for part in packed.split(16)]
        result[kind] = math.exp(float(sum(losses)) / len(packed))
    return result


def reply(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: list[str], tokens: int
) -> list[str]:
    """Greedy answers to user messages."""
    inputs = tokenizer.apply_chat_template(
        [[{"role": "user", "content": prompt}] for prompt in prompts],
        add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True,
        tokenizer_kwargs={"padding_side": "left"},
    )  # fmt: skip
    output = model.generate(**inputs, max_new_tokens=tokens)
    width = inputs["input_ids"].shape[1]
    return tokenizer.batch_decode(output[:, width:], skip_special_tokens=True)


def accuracies(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, seed: int
) -> dict[str, float]:
    """Share of `PROMPTS` held-out prompts of each task whose greedy answer is exactly right."""
    result = {}
    for task, (make, _, checkable) in tiny_corpus.TASKS.items():
        if not checkable:
            continue
        rng = Random(f"{seed} {task}")
        turns = [make(rng)[0] for _ in range(PROMPTS)]
        answers = reply(model, tokenizer, [question for question, _ in turns], 96)
        pairs = [(answer, right) for answer, (_, right) in zip(answers, turns, strict=True)]
        if task == "word_problem":
            # The wording of the solution is free; its last word is the result.
            pairs = [(answer.split(" ")[-1], right.split(" ")[-1]) for answer, right in pairs]
        result[task] = sum(answer == right for answer, right in pairs) / PROMPTS
    return result


def machine() -> str:
    """The processor, for the README."""
    info = Path("/proc/cpuinfo").read_text()
    name = next(
        line.split(":")[1].strip() for line in info.splitlines() if line.startswith("model name")
    )
    cores = torch.get_num_threads()
    amx = " with AMX" if "amx_bf16" in info else ""
    return f"{cores} {'core' if cores == 1 else 'cores'} of {name}{amx}"


SAMPLES = [
    "Hello!",
    "Tell me a short story about Anna.",
    "Ben bought 3 red kites at the market. What colour were the kites?",
    "What is 23 + 45?",
    "Sort the numbers: 31, 7, 88, 19",
]

README = """\
# tiny

The base model that is part of lorafit, so that it works without any download: a Llama-architecture
language model with {parameters:,} parameters (tied embeddings, 4 layers, width 256, 4 heads, 2
key/value heads, vocabulary 4096, context 2048), stored in bfloat16.

It knows simple English sentences and small tasks on words and numbers. It is meant for trying out
and testing fine-tuning, not as an assistant: it knows nothing about the world beyond a few hundred
everyday facts.

## How it was made

`{command}`

Text: `scripts/tiny_corpus.py` (seed {seed}), written for this purpose; no other text was used, and
no JSON answers are in it. Every row of {length} tokens was seen once.
Training started from random weights with a copying circuit put in ("A B ... A" is followed by
"B"), as a run this short does not find one by itself; all weights were then trained. Each
step also had a row of random tokens that repeat.

| | |
|---|---|
| tokens of text seen | {tokens:,} ({steps} steps of {batch} rows of {length}) |
| training time | {minutes:.0f} minutes ({rate:,.0f} tokens/s) on {machine} |
| versions | torch {torch}, transformers {transformers} |
| sha256 of `model.safetensors` | `{sha256}` |

## Chat format

`<|user|>`, newline, the text, `<|end|>`, newline, `<|assistant|>`, newline, the answer, `<|end|>`,
newline; a `<|system|>` message may come first. `<|end|>` is the end-of-sequence token and also ends
a plain text; `<|pad|>` is padding; there is no token for the beginning.

## Measured

On text and prompts made from another seed, with the rounded weights.

| held-out text | perplexity per token |
|---|---|
{perplexities}

Right answers (greedy, exact match) of {prompts} prompts each. Words, and the facts of tasks such as
"opposite", are those of the training text; lists, names, numbers and sentences are drawn anew.

| task | right |
|---|---|
{accuracies}

## Samples (greedy)

{samples}
"""


def write_readme(
    out: Path, args: argparse.Namespace, seconds: float, model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
) -> None:  # fmt: skip
    """Measure the saved model and describe it."""
    perplexity = perplexities(model, tokenizer, args.seed + HELD_OUT)
    accuracy = accuracies(model, tokenizer, args.seed + HELD_OUT)
    samples = zip(SAMPLES, reply(model, tokenizer, SAMPLES, 120), strict=True)
    command = "python scripts/pretrain_tiny.py --out lorafit/model/tiny"
    command += f" --steps {args.steps} --seed {args.seed} --threads {args.threads}"
    tokens = args.steps * args.batch * LENGTH
    text = README.format(
        parameters=model.num_parameters(), command=command, seed=args.seed, tokens=tokens,
        steps=args.steps, batch=args.batch, length=LENGTH, minutes=seconds / 60,
        rate=tokens / seconds, machine=machine(), torch=torch.__version__,
        transformers=transformers.__version__, prompts=PROMPTS,
        sha256=hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest(),
        perplexities="\n".join(f"| {kind} | {value:.3f} |" for kind, value in perplexity.items()),
        accuracies="\n".join(f"| {task} | {share:.0%} |" for task, share in accuracy.items()),
        samples="\n\n".join(f"- {prompt}\n  > {answer}" for prompt, answer in samples),
    )  # fmt: skip
    (out / "README.md").write_text(text)
    print(text)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="directory to write")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--batch", type=int, default=4, help=f"rows of {LENGTH} tokens a step")
    parser.add_argument("--copy-rows", type=int, default=1, help="more rows, of random tokens")
    parser.add_argument("--lr", type=float, default=1e-3, help="highest learning rate")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="part of what fixes the result")
    parser.add_argument("--save-every", type=int, default=100, help="steps between checkpoints")
    parser.add_argument("--state", type=Path, help="file to keep the state in, and to go on from")
    args = parser.parse_args()

    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    torch.set_num_threads(args.threads)
    torch.use_deterministic_algorithms(True)
    # Filling fresh memory only guards against reading it unwritten, and costs a tenth of the time.
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.manual_seed(args.seed)
    tokenizer = train_tokenizer(args.seed)
    model = build_model()
    seconds = train(model, tokenizer, args)
    save(model, tokenizer, args.out)
    # From here on: what a user loads.
    tokenizer = AutoTokenizer.from_pretrained(args.out)
    model = AutoModelForCausalLM.from_pretrained(args.out, dtype=torch.float32).eval()
    write_readme(args.out, args, seconds, model, tokenizer)
    size = sum(file.stat().st_size for file in args.out.iterdir())
    if size > SIZE_LIMIT:
        raise SystemExit(f"{args.out} has {size:,} bytes, more than {SIZE_LIMIT:,}")


if __name__ == "__main__":
    main()
