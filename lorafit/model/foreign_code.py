"""Python code that comes with a model: which files, and whether the user has said that they run.

`model.trust_remote_code` in a recipe that the user trains or checks is that word. A run directory
brings a recipe too, and may be somebody else's: for the verbs that read runs the word counts only
where it was given here for the same code, which is kept as a digest in the cache directory.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from lorafit.cache_dir import cache_directory
from lorafit.errors import UserError
from lorafit.model.intake import CODE_REMEDY, code_files
from lorafit.model.local_files import local_files
from lorafit.recipe.schema import Model
from lorafit.run_dir import write_text

_KEPT = "code-that-may-run.txt"


@dataclass(frozen=True)
class ForeignCode:
    """The code of a model. source: its directory, or the repository with its commit. digest: of
    the files' names and contents."""

    source: str
    files: list[str]
    digest: str


def foreign_code(section: Model) -> ForeignCode:
    """What runs when `section` is loaded with its code. UserError when the base is refused."""
    folder, commit = local_files(section)
    files, digest = code_files(folder), hashlib.sha256()
    for file in files:
        name, content = file.relative_to(folder).as_posix(), file.read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    source = str(folder) if commit is None else f"{section.base} at commit {commit}"
    return ForeignCode(source, [file.relative_to(folder).as_posix() for file in files],
                       digest.hexdigest())


def keep_permission(code: ForeignCode) -> None:
    """Remember that the user has said that this very code runs."""
    kept = _kept()
    if code.digest not in kept:
        _place().parent.mkdir(parents=True, exist_ok=True)
        write_text(_place(), "\n".join([*sorted(kept), code.digest]) + "\n")


def refuse_unread_code(section: Model) -> None:
    """UserError unless the user has said before that the code of this base runs, as it is now."""
    code = foreign_code(section)
    if code.files and code.digest not in _kept():
        raise UserError(
            f"the run wants Python code of its base to be run ({', '.join(code.files[:5])}), "
            "which nobody has allowed on this machine", f"model.base: {section.base}",
            f"{CODE_REMEDY} for `lorafit check` with the run's recipe.yaml once")


def _kept() -> set[str]:
    return set(_place().read_text(encoding="utf-8").split()) if _place().is_file() else set()


def _place() -> Path:
    return cache_directory() / _KEPT
