"""Kinds of malformed recipes. Each begins with a shipped recipe, which is valid as it is."""

import re
import string
from itertools import pairwise
from random import Random

from reliability.malformed.case import (
    GOOD_RECIPE,
    GOOD_ROWS,
    RECIPE,
    ROWS,
    Case,
    Kind,
    Special,
    with_recipe,
)
from reliability.malformed.recipe_text import shipped
from reliability.malformed.schema import is_valid, sections

# As they stand in recipes of axolotl, LLaMA-Factory, TRL, ms-swift and Unsloth.
FOREIGN = [
    "base_model", "model_name_or_path", "model_type", "load_in_4bit", "load_in_8bit", "lora_r",
    "lora_rank", "lora_alpha", "lora_dropout", "lora_target", "lora_target_linear",
    "lora_target_modules", "finetuning_type", "stage", "datasets", "dataset", "dataset_dir",
    "cutoff_len", "sequence_len", "max_seq_length", "template", "chat_template_name",
    "per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs",
    "num_epochs", "max_steps", "learning_rate", "lr_scheduler_type", "warmup_ratio", "optim",
    "bf16", "fp16", "tf32", "flash_attention", "output_dir", "train_type", "train_on_inputs",
    "sample_packing", "pad_to_sequence_len", "val_set_size", "wandb_project", "hub_model_id",
    "use_unsloth", "quantization_bit", "deepspeed", "fsdp", "special_tokens", "save_steps",
    "logging_steps",
]
VALUES = [
    "0", "-1", "1.5", "-0.5", "2", "1e400", "-1e400", ".nan", ".inf", "-.inf",
    "99999999999999999999",
    "1_000_000_000_000_000_000_000_000", "true", "on", "no", "~", "[]", "{}", "[1, 2]", "[[1]]",
    "{a: 1}", "''", "' '", '"5"', "five", "2026-01-31", "12:30:45", "1e-4x", "0x1F", "0o17",
    "1,000", "4bit", "bf16", "None", "True or False", "[q_proj, 5]", "[true]", "'\\0'", "ü",
    "auto ",
]
_PYTHON = {"~": None, "[]": [], "{}": {}, "[1, 2]": [1, 2], "[[1]]": [[1]], "{a: 1}": {"a": 1},
           "''": "", "' '": " ", '"5"': "5", "true": True, "on": True, "no": False,
           ".nan": float("nan"), ".inf": float("inf"), "-.inf": float("-inf"),
           "1e400": float("inf"),
           "-1e400": float("-inf"), "99999999999999999999": 99999999999999999999,
           "1_000_000_000_000_000_000_000_000": 1e24, "0": 0, "-1": -1, "1.5": 1.5, "-0.5": -0.5,
           "2": 2, "[q_proj, 5]": ["q_proj", 5], "[true]": [True], "'\\0'": "\\0", "auto ": "auto"}


def wrong_value(random: Random) -> Case:
    """A value of any key that the published JSON schema does not allow there.

    activation_checkpointing also takes true and false, as its help says.
    """
    text = shipped(random)
    candidates = [
        (section, key, value) for section, keys in sections().items()
        for key, schema in keys.items() for value in VALUES
        if not is_valid(_PYTHON.get(value, value), schema)
        and not (key == "activation_checkpointing" and value in ("true", "on", "no"))
    ]
    section, key, value = random.choice(candidates)
    return text.case(text.put(section, key, value))


def misspelt_key(random: Random) -> Case:
    """A letter of a key left out, doubled, changed, or two swapped, so that it is none of its
    section's keys; a required one is missing then as well."""
    text = shipped(random)
    known = {section: set(keys) for section, keys in sections().items()}
    while True:
        index, section, key, _ = random.choice(text.keys)
        at = random.randrange(len(key) - 1)
        new = random.choice([
            key[:at] + key[at + 1:], key[:at] + key[at] + key[at:],
            key[:at] + key[at + 1] + key[at] + key[at + 2:],
            key[:at] + random.choice(string.ascii_lowercase) + key[at + 1:],
            key.upper(), key.replace("_", "-"), key.replace("_", " "), key + "s",
        ])
        if new and new not in known[section] and new.isidentifier() | (" " in new) | ("-" in new):
            text.lines[index] = text.lines[index].replace(f"{key}:", f"{new}:", 1)
            return text.case(index)


def foreign_key(random: Random) -> Case:
    """A key of another tool, which no section has under that name, in a section or above them."""
    text = shipped(random)
    known = sections()
    key = random.choice(FOREIGN)
    section = random.choice([*known, ""])
    if not section:
        text.lines.insert(0, f"{key}: {random.choice(['1', 'true', 'x', '[a]', '{a: 1}'])}")
        return text.case(0)
    if key in known[section]:
        section = "output"
    return text.case(text.put(section, key, random.choice(["1", "0.5", "true", "auto", "[a]"])))


def missing_part(random: Random) -> Case:
    """Without a section or a key that the schema requires."""
    text = shipped(random)
    section, key = random.choice([("model", "base"), ("data", "train"), ("output", "dir")])
    if random.random() < 0.5:
        text.without_section(section)
        return with_recipe(text.bytes, section)
    text.put(section, key, "")
    text.drop(section, key)
    if not any(inside == section for _, inside, _, _ in text.keys):
        return with_recipe(text.bytes, section)
    return with_recipe(text.bytes, f"{section}.{key}")


def wrong_nesting(random: Random) -> Case:
    """A section's key above the sections, a section in another one, or no mapping at all."""
    text = shipped(random)
    how = random.randrange(3)
    if how == 0:
        index, section, key, value = random.choice(text.keys)
        text.lines.insert(0, f"{key}: {value or 'x'}")
        return text.case(0)
    if how == 1:
        inner, outer = random.sample(list(text.sections), 2)
        index = text.sections[outer] + 1
        text.lines.insert(index, f"  {inner}: {{}}")
        return text.case(index)
    section = random.choice(list(text.sections))
    index = text.sections[section]
    text.without_section(section)
    text.lines.insert(index, f"{section}: {random.choice(['x', '5', '[a, b]', 'true', '1.5'])}")
    return text.case(index)


def indentation(random: Random) -> Case:
    """One key of a section of several stands further right or left than its neighbours, which no
    mapping allows."""
    text = shipped(random)
    keys = text.keys
    later = [index for (index, section, *_), (_, before, *_) in pairwise(reversed(keys))
             if section == before]
    index = random.choice(later)
    spaces = random.choice([" ", "   ", "    ", "      "])
    text.lines[index] = spaces + text.lines[index].lstrip()
    return text.case()


def tab(random: Random) -> Case:
    """Indented with a tab, which YAML never allows."""
    text = shipped(random)
    index = random.choice(text.keys)[0]
    text.lines[index] = random.choice(["\t", "\t\t", "  \t"]) + text.lines[index].lstrip()
    return text.case(index)


def written_twice(random: Random) -> Case:
    """A key or a section a second time, at the end of its mapping or of the file."""
    text = shipped(random)
    if random.random() < 0.3:
        text.lines += [f"{random.choice(list(text.sections))}:", "  seed: 1"]
        return text.case(len(text.lines) - 2)
    index, _, key, value = random.choice(text.keys)
    text.lines.insert(index + 1, f"  {key}: {random.choice([value or '1', '5', 'x'])}")
    return text.case(index + 1)


def tag(random: Random) -> Case:
    """A YAML tag before a value: a plain value needs none, and others run code."""
    text = shipped(random)
    index, _, key, value = random.choice(text.keys)
    written = random.choice([
        f"!!str {value or 'x'}", "!!python/object/apply:os.system ['touch pwned']",
        "!!python/name:os.system", "!env HOME", "!include other.yaml", "!!binary aGVsbG8=",
        "!<tag:yaml.org,2002:python/object/new:os.system> [x]", "!!set {a, b}", "!Ref x",
    ])
    text.lines[index] = f"  {key}: {written}"
    return text.case(index)


def alias(random: Random) -> Case:
    """An alias of nothing, of itself, a merge key, or aliases that multiply."""
    text = shipped(random)
    how = random.randrange(4)
    if how == 0:
        return text.case(text.put("training", "seed", "*nothing"))
    if how == 1:
        return text.case(text.put("training", "sample_prompts", "&a [x, *a]"))
    if how == 2:
        text.lines.insert(0, "<<: {seed: 1}")
        return text.case(0)
    bomb = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    bomb += [f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]"
             for before, name in zip("abcdefghi", "bcdefghij", strict=True)]
    text.lines = bomb + text.lines
    return text.case()


def several_documents(random: Random) -> Case:
    """Two recipes in one file."""
    text = shipped(random)
    text.lines += [random.choice(["---", "...\n---", "--- # second"]), *shipped(random).lines]
    return text.case()


def cut_value(random: Random) -> Case:
    """A bracket, a brace or a quote that is never closed, or a sign that begins no value. A key on
    the next line cannot go on with what was opened, and quotes that would close are taken out."""
    text = shipped(random)
    index, _, key, _ = random.choice(text.keys)
    opened = random.choice(["[q_proj, v_proj", "{a: 1", '"text', "'text", "[[1]", '"\\x"', "@home",
                            "`code`", "%d", "&", "*", "a: b: c", "[a]]", '"a" b', "{{ model }}"])
    text.lines[index] = f"  {key}: {opened}"
    text.lines[index + 1:] = [re.sub("['\"]", "", line) for line in text.lines[index + 1:]]
    return text.case()


def encoding(random: Random) -> Case:
    """Text in another encoding than UTF-8; each has bytes that UTF-8 does not allow, or NUL."""
    text = shipped(random)
    text.lines.insert(random.randrange(len(text.lines)), "# für später: größere Ränge")
    name = random.choice(["utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1", "cp1252",
                          "cp437"])
    return with_recipe(text.bytes.decode().encode(name, "replace"), RECIPE)


def stray_bytes(random: Random) -> Case:
    """NUL, a control character, or a byte that UTF-8 never has, somewhere in the text."""
    raw = shipped(random).bytes
    at = random.randrange(len(raw))
    stray = random.choice([b"\0", b"\x07", b"\x1b[0m", b"\xff", b"\xc0\xaf", b"\xed\xa0\x80",
                           b"\x00" * 100, b"\xef\xbf\xbf"])
    return with_recipe(raw[:at] + stray + raw[at:], RECIPE)


def no_text(random: Random) -> Case:
    """Random bytes after a magic number that is no YAML."""
    head = random.choice([b"\x1f\x8b\x08\0", b"PK\x03\x04", b"\x89PNG\r\n\x1a\n", b"\x7fELF\0",
                          b"%PDF-1.7\n\xff", b"PAR1\0"])
    return with_recipe(head + random.randbytes(random.randrange(2000)), RECIPE)


def nothing(random: Random) -> Case:
    """A file without a value in it."""
    return with_recipe(random.choice([b"", b"\n\n", b"# comment\n", b"---\n", b"null\n", b"~",
                                      b"\xef\xbb\xbf", b"---\n...\n", b"   \n  \n"]), RECIPE)


def no_mapping(random: Random) -> Case:
    """A list, a text or a number, also as JSON; no sections anywhere."""
    raw = random.choice([b"- model\n- data\n", b"[]", b"5", b"text", b'["model", "data"]', b"true",
                         b"model\ndata\n", b"1.5e3", b"2026-01-31", b'"model: {base: tiny}"',
                         b"model=tiny\nrank=4\n", b"base tiny\n", b"[model]\nbase = 1\n",
                         b"<recipe><model/></recipe>", b"#!/bin/sh\nlorafit train r.yaml\n",
                         b"import os\n", b"{}", b"- {model: {base: tiny}}"])
    return with_recipe(raw, "model" if raw == b"{}" else RECIPE)


def too_much(random: Random) -> Case:
    """Over the limit of 1 MB, or nested deeper than any recipe."""
    size = random.randrange(2_000, 50_000)
    raw = random.choice([
        GOOD_RECIPE.encode() + b"# " + b"x" * random.randrange(1_000_000, 3_000_000),
        b"[" * size, b"{a: " * size, b"model:\n" + b"".join(
            b" " * depth + b"a:\n" for depth in range(1, 1200)),
        b"model: {base: tiny, x" + b"y" * size + b": 1}\n",
        b"model: {base: [" + b"tiny, " * (size // 2) + b"]}\n",
        b"- " * size + b"x", b"? " * size + b"x",
    ])
    return with_recipe(raw, RECIPE)


def no_file(random: Random) -> Case:
    """The recipe is a directory, a pipe, a link to nothing, or not there."""
    return random.choice([
        with_recipe(Special.DIRECTORY, RECIPE), with_recipe(Special.PIPE, RECIPE),
        with_recipe(Special.DANGLING_LINK, RECIPE), Case({ROWS: GOOD_ROWS}, RECIPE),
    ])


def impossible_pair(random: Random) -> Case:
    """Keys that are fine alone and exclude each other by what their help says."""
    few, many = sorted(random.sample(range(1, 100), 2))
    name, value = random.choice([
        ("training", {"epochs": f"{few}", "steps": f"{many}"}),
        ("training", {"batch_size": f"{few}", "micro_batch_size": f"{many}"}),
        ("training", {"learning_rate": f"{few}e-4", "min_learning_rate": f"{many}e-4"}),
        ("training", {"warmup": f"{few}.5"}),
        ("data", {"eval": "held.jsonl", "eval_fraction": f"0.{few:02}"}),
        ("data", {"streaming": "true", "max_rows": f"{many}"}),
        ("data", {"streaming": "true", "eval": "null", "eval_fraction": "0.5"}),
        ("data", {"date": f"2026-13-{few:02}"}), ("data", {"date": "tomorrow"}),
        ("data", {"eval": "[{path: held.jsonl, weight: 2}]"}), ("data", {"train": "[]"}),
        ("adapter", {"freeze_a": "true", "dora": "true"}),
        ("adapter", {"init": "orthogonal", "rank": f"{2 * few + 1}"}),
        ("adapter", {"target_modules": "'q_proj('"}), ("adapter", {"target_modules": "[]"}),
        ("adapter", {"layers": "[]"}), ("adapter", {"layers": "upper"}),
        ("adapter", {"layers": f"first:{few}"}), ("adapter", {"init": "zeros"}),
        ("adapter", {"method": "qlora"}), ("adapter", {"method": "ia3", "rank": f"{few}"}),
        ("adapter", {"rank_pattern": "{'(': 4}"}), ("adapter", {"rank_pattern": "{q_proj: 0}"}),
        ("evaluation", {"pattern": "'####'"}), ("evaluation", {"pattern": "'(a)(b)'"}),
        ("data", {"train": "'a\\0b.jsonl'" if few % 2 else '"a\\0b.jsonl"'}),
        ("output", {"dir": "''"}), ("output", {"dir": f"{'x' * 300}"}),
    ])
    text = shipped(random)
    for key, written in value.items():
        text.put(name, key, written)
    return with_recipe(text.bytes, RECIPE if "train" not in value else name)


def path_to_nothing(random: Random) -> Case:
    """A file or a directory that the recipe names and the folder does not have, or that is
    something else."""
    word = "".join(random.choices(string.ascii_lowercase, k=random.randrange(3, 12)))
    text = shipped(random)
    section, key, value = random.choice([
        ("data", "train", f"{word}.jsonl"), ("data", "train", f"./{word}/*.csv"),
        ("data", "train", f"[{ROWS}, {word}.parquet]"), ("data", "eval", f"{word}.json"),
        ("data", "train", f"~/{word}/rows.jsonl"), ("data", "train", f"{{path: {word}.tsv}}"),
        ("model", "base", f"./{word}"), ("model", "base", f"/nowhere/{word}"),
        ("model", "base", f"~/{word}"), ("model", "base", ROWS), ("model", "base", "."),
        ("data", "chat_template", f"{word}.jinja"), ("data", "chat_template", f"./{word}.j2"),
        ("data", "chat_template", f"templates/{word}"), ("output", "dir", ROWS),
        ("output", "dir", f"{ROWS}/{word}"), ("data", "chat_template", "'{{ messages'"),
        ("data", "chat_template", "'{% for m in messages %}{{ m.content }}'"),
    ])
    text.put(section, key, value)
    named = {"train": word, "eval": word, "dir": ROWS, "base": "model.base",
             "chat_template": "data.chat_template"}[key]
    return with_recipe(text.bytes, named, **{"held.jsonl": GOOD_ROWS.replace(b"?", b" is?")})


def no_such_layer(random: Random) -> Case:
    """A target that no layer of the embedded base, a small Llama, is called."""
    name = random.choice(["query_key_value", "c_attn", "Wqkv", "q_prj", "attention", "qkv_proj"])
    recipe = GOOD_RECIPE.replace("rank: 4", f"rank: 4\n  target_modules: [{name}]")
    case = with_recipe(recipe.encode(), "adapter.target_modules")
    return Case(case.files, case.place, needs_model=True)


def override(random: Random) -> Case:
    """A good recipe, and `--set` with one of the mistakes above."""
    written = random.choice([
        "adapter.rnk=8", "adapter.rank=eight", "adapter.rank=0", "adapter.rank=-3", "rank=8",
        "adapter.rank", "=8", "adapter.=8", ".rank=8", "adapter..rank=8", "adapter.rank=[1",
        "adapter.rank={", "adapter.rank=.nan", "adapter.rank=1e400", "adapter.rank=!!int 5",
        "adapter.rank=*a", "model=tiny", "model.base=", "model.base=[tiny]", "data.train=",
        "data.train=5", "training.learning_rate=fast", "training.learning_rate=-1e-4",
        "training.betas=[0.9]", "lora_r=16", "adapter.lora_alpha=32", "output=runs", "x",
        "training.epochs=2", "adapter.rank=\t5: 3", "adapter.rank.deep=5", "model.base.x=1",
        "training.per_device_train_batch_size=4", "adapter.rank=" + "9" * 5000,
        "adapter." + "x" * 5000 + "=1", "data.train=" + "y" * 5000, "adapter.rank=\x07",
        "data.columns={promt: x}", "data.columns.promt=x", "data.checks.unusable=warn",
        "adapter.rank=2026-01-31", "training.seed=4294967296", "training.steps=1.5", "", " = ",
    ])
    case = with_recipe(GOOD_RECIPE.encode(), written.split("=")[0].strip()[:40] or "--set")
    return Case(case.files, case.place, ("--set", written))


KINDS: tuple[Kind, ...] = (
    wrong_value, misspelt_key, foreign_key, missing_part, wrong_nesting, indentation, tab,
    written_twice, tag, alias, several_documents, cut_value, encoding, stray_bytes, no_text,
    nothing, no_mapping, too_much, no_file, impossible_pair, path_to_nothing, no_such_layer,
    override,
)
