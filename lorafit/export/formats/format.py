"""What a format is: the form in which an adapter leaves for the programs that load it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorafit.errors import Problem
from lorafit.export.verify import Agreement
from lorafit.model.trained import AdapterSource


@dataclass(frozen=True)
class Written:
    """What came of writing: whether numbers were converted, and what there is to know of it.

    A converted adapter computes sums of the same numbers in another order; one that was not gives
    equal bits. remark: for whoever uses the artifact, empty where there is nothing to say.
    command: how a program is started with it, `{folder}` standing for where it comes to lie.
    """

    converted: bool
    remark: str = ""
    command: str = ""


def _nobodys(folder: Path) -> bool:
    return False


@dataclass(frozen=True)
class Format:
    """A form of adapter.

    name: what `--format` takes. for_what: the programs that load it.
    refuse: every reason why this adapter cannot be expressed, each with the way out; looked at
    before anything is written. write: puts the adapter's files into an empty folder; tokenizer and
    generation settings are written beside them for every format. check: loads what is in a folder
    by the rules of those programs and compares its logits with the trained adapter's; the second
    value names what it was loaded by. largest_rank: that the programs take, None where there is no
    limit.

    What `lorafit verify` and the model card need; a format without them is still verified, by its
    check, where lorafit_proof.json names it:
    owns: whether a folder looks like this format's. load: puts what is in a folder on a base in
    memory, by those programs' rules, and returns a model that transformers' generate works on.
    usage: how to load it, for the card, with {base} and {name} to be filled in. library: what the
    hub calls the library that reads it.
    """

    name: str
    for_what: str
    refuse: Callable[[AdapterSource], list[Problem]]
    write: Callable[[AdapterSource, Path], Written]
    check: Callable[[AdapterSource, Path], tuple[Agreement, str]]
    largest_rank: int | None = None
    owns: Callable[[Path], bool] = _nobodys
    load: Callable[[Any, Path], Any] | None = None
    usage: str = ""
    library: str = "peft"
