"""docs/methods.md: what each method takes, and on which bases each was seen to work.

The tables of methods, keys and options are compared with the page in every run of the tests. The
table of bases is written by the long test, which does all that the table says; to write the page
anew, run this file with LORAFIT_WRITE_DOCS=1, and with `-m long` for the table of bases.
"""

import json
import os
import re
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from lorafit.export.adapter import export_adapter
from lorafit.model.adapters.files import check_adapter_files, load_adapter
from lorafit.model.adapters.peft_config import options_of
from lorafit.model.trained import AdapterSource
from lorafit.recipe.adapter import Adapter
from lorafit.recipe.methods import METHODS, NOT_OFFERED, refusal_on
from lorafit.recipe.schema import Model
from tests.methods.harness import (
    KINDS,
    PLAIN,
    STEPS,
    STOP,
    base,
    commit,
    logits,
    relative,
    resumed,
    saved,
    section_of,
    trainee,
)

PAGE = Path(__file__).parents[2] / "docs" / "methods.md"
ACTIONS = ("train", "resume", "merge", "export")
HEAD, FOOT = "<!-- bases -->\n", "<!-- end of bases -->\n"

ABOUT = f"""\
# Methods

Written by `LORAFIT_WRITE_DOCS=1 python -m pytest tests/methods/test_methods_page.py`; the same
test fails when the page is behind. What stands behind `adapter.options` is that of peft
{peft.__version__}.

`adapter.method` names one of the methods below. A key of the recipe that a method does not have is
refused, and so is an option that it does not have; what is left out has the default given here.
Methods of peft are configured, built and saved by peft, and plain peft loads what is saved.
`bottleneck`, `paca` and `full` are lorafit's own.

A training run starts at the base: before the first step the adapter changes nothing. Where a
method cannot do that, and what else a method cannot do, the second table says with the reason. The
last table says what was done with each method on each kind of base.
"""


def names_of(row: Any, section: Adapter) -> str:
    keys = sorted(row.keys - {"method", "options"})
    filled = {key: getattr(section, key) for key in keys}
    return ", ".join(f"`{key}`" + (f" {filled[key]:g}" if isinstance(filled[key], int | float)
                                   and not isinstance(filled[key], bool) else
                                   f" {filled[key]}" if key == "target_modules" and filled[key]
                                   else "") for key in keys) or "none"


def options(name: str, section: Adapter) -> str:
    row = METHODS[name]
    if row.is_own:
        named = {key: values[0] for key, values in row.own_options.items()}
    else:
        named = options_of(section, getattr(peft, row.config))
    shown = []
    for key, value in sorted(named.items()):
        value = getattr(value, "value", value)  # members of an enumeration by their value
        plain = isinstance(value, str | int | float | bool) or value is None
        shown.append(f"`{key}`" + (f" {json.dumps(value)}" if plain and value is not None else ""))
    return ", ".join(shown) or "none"


def tables() -> str:
    lines = [ABOUT, "| method | trains | keys of the recipe | `adapter.options` |",
             "|---|---|---|---|"]
    for name, row in METHODS.items():
        section = Adapter(method=name)
        lines.append(f"| `{name}` | {row.summary} | {names_of(row, section)} "
                     f"| {options(name, section)} |")
    lines += ["", "## What a method cannot do", "", "| method | |", "|---|---|"]
    for name, row in METHODS.items():
        for what in limits(name, row):
            lines.append(f"| `{name}` | {what} |")
    lines += ["", "## Not offered", "", "| method of peft | why |", "|---|---|"]
    lines += [f"| `{name}` | {why} |" for name, why in NOT_OFFERED.items()]
    return "\n".join(lines) + "\n"


def limits(name: str, row: Any) -> list[str]:
    found = []
    if left := [kind for kind in KINDS if kind not in (*PLAIN, *row.quantized)]:
        found.append(f"is not trained on {', '.join(left)}: {row.why_not_quantized}")
    if row.starts_elsewhere:
        found.append(f"does not start at the base: {row.starts_elsewhere}")
    if row.why_not_merged:
        found.append(f"is not merged: {row.why_not_merged}")
    if row.why_not_packed:
        found.append(f"is trained on padded rows only: {row.why_not_packed}")
    if row.why_not_recomputed:
        found.append(f"does not go with activation checkpointing: {row.why_not_recomputed}")
    if row.why_not_sharded:
        found.append(f"is not cut up among ranks (`--strategy fsdp`): {row.why_not_sharded}")
    if row.needs_package:
        found.append(f"needs {row.needs_package[1]} (`pip install {row.needs_package[1]}`)")
    if row.needs_option:
        found.append(f"needs `adapter.options.{row.needs_option}`")
    if row.needs_weights:
        found.append("its size follows from the base's weights")
    found += [f"`{option}` is refused: {why}" for option, why in row.unused.items()]
    return found


# ---- the table of bases


@cache
def outcome(method: str, kind: str) -> dict[str, str]:
    """Of each action "works", or why it is refused, or what went wrong."""
    row = METHODS[method]
    if kind not in PLAIN and kind not in row.quantized:
        assert refuses(method, kind)
        return dict.fromkeys(ACTIONS, "refused")
    result = {}
    with tempfile.TemporaryDirectory() as folder:
        section = section_of(method)
        it = trainee(section, kind).train(STOP)
        checkpoint = commit(it, Path(folder) / "run")
        it.train(STEPS)
        result["train"] = "works" if it.losses[-1] < it.losses[0] else "the loss does not fall"
        other = resumed(section, checkpoint, kind).train(STEPS)
        mine, theirs = it.everything(), other.everything()
        equal = mine.keys() == theirs.keys() and all(
            torch.equal(mine[name], theirs[name]) for name in mine)
        result["resume"] = "works" if equal else "other weights"
        file = saved(it, Path(folder) / "adapter")
        result["merge"] = merged(file) if row.merges else "refused"
        result["export"] = exported(method, kind, file, Path(folder) / "exported")
    return result


def refuses(method: str, kind: str) -> bool:
    from lorafit.recipe.schema import Recipe

    with pytest.raises(ValueError, match=re.escape(refusal_on(method, kind))):
        Recipe.model_validate({
            "model": {"base": "tiny", "quantization": kind},
            "adapter": {"method": method, "options": section_of(method).options},
            "data": {"train": "rows.jsonl"}, "output": {"dir": "run"}})
    return True


def merged(file: Path) -> str:
    """Merged into the full-precision base, as lorafit does wherever the adapter was trained."""
    adapted = load_adapter(base(), file)
    before = logits(adapted)
    difference = relative(logits(adapted.merge_and_unload()), before)
    return "works" if difference < 1e-5 else f"differs by {difference:.0e}"


def exported(method: str, kind: str, file: Path, output: Path) -> str:
    if method == "full":
        return "refused"
    stored, dtype = ("none", kind) if kind in PLAIN else (kind, "float32")
    source = AdapterSource(file, check_adapter_files(file),
                           Model(base="tiny", dtype=dtype, quantization=stored), None, None)
    export_adapter(source, output)
    return "works"


def table_of_bases(found: dict[tuple[str, str], dict[str, str]]) -> str:
    cells = [how for actions in found.values() for how in actions.values()]
    works, refused = cells.count("works"), cells.count("refused")
    lines = [
        "## Bases", "",
        "Each method was trained on the embedded base in six formats, interrupted and resumed,",
        "merged and exported. *train*: four steps, and the loss falls. *resume*: stopped after",
        "two steps and gone on with from the checkpoint, the weights are the same to the bit.",
        "*merge*: merged into the full-precision base, the logits agree to 1e-5. *export*: what",
        "`lorafit export-adapter` writes computes the same logits. *all*: all four work.", "",
        f"{len(cells)} combinations: {works} work, {refused} are refused, "
        f"{len(cells) - works - refused} fail, "
        f"{len(METHODS) * len(KINDS) * len(ACTIONS) - len(cells)} were not reached.", "",
        "| method | " + " | ".join(KINDS) + " |", "|---" * (len(KINDS) + 1) + "|"]
    for name in METHODS:
        if (name, KINDS[0]) in found:
            lines.append(f"| `{name}` | " + " | ".join(cell(found[name, kind])
                                                       for kind in KINDS) + " |")
    return HEAD + "\n".join(lines) + "\n" + FOOT


def cell(actions: dict[str, str]) -> str:
    hows = set(actions.values())
    if hows == {"works"}:
        return "all"
    if hows == {"refused"}:
        return "refused"
    wrong = [f"{action}: {how}" for action, how in actions.items()
             if how not in ("works", "refused")]
    return ", ".join([*(action for action, how in actions.items() if how == "works"), *wrong])


def on_page() -> str:
    """The table of bases as the page has it; empty when it has none."""
    text = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    return text[text.index(HEAD):] if HEAD in text else ""


def test_the_page_of_methods_is_up_to_date() -> None:
    missing = [row.config for row in METHODS.values()
               if row.config and not hasattr(peft, row.config)]
    if os.environ.get("LORAFIT_WRITE_DOCS"):
        PAGE.write_text(f"{tables()}\n{on_page()}".rstrip("\n") + "\n", encoding="utf-8")
    written = " ".join(PAGE.read_text(encoding="utf-8").split())
    if missing or f"that of peft {peft.__version__}." not in written:
        pytest.skip("the page is of another version of peft")
    assert PAGE.read_text(encoding="utf-8") == f"{tables()}\n{on_page()}".rstrip("\n") + "\n"


def test_the_table_of_bases_is_what_the_rows_declare() -> None:
    """Cheap: a method is refused on a base exactly where its row says so."""
    rows = {match[1]: match[0].split(" | ")[1:] for match in
            re.finditer(r"^\| `(\w+)` \| .*?(?= \|$)", on_page(), re.MULTILINE)}
    assert set(rows) == set(METHODS)
    for name, cells in rows.items():
        refused = {kind for kind, text in zip(KINDS, cells, strict=True) if text == "refused"}
        assert refused == set(KINDS) - {*PLAIN, *METHODS[name].quantized}, name


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_every_method_works_on_every_base_or_is_refused() -> None:
    pytest.importorskip("bitsandbytes")
    pytest.importorskip("sklearn")
    found = {(name, kind): outcome(name, kind) for name in METHODS for kind in KINDS}
    if os.environ.get("LORAFIT_WRITE_DOCS"):
        PAGE.write_text(f"{tables()}\n{table_of_bases(found)}", encoding="utf-8")
    wrong = {key: how for key, actions in found.items() for how in actions.values()
             if how not in ("works", "refused")}
    assert wrong == {}
    assert on_page() == table_of_bases(found)
