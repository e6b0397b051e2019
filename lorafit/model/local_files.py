"""A base's files on this machine: looked at, and of one commit where they come from the hub."""

import os
from functools import lru_cache
from pathlib import Path

from lorafit import pins
from lorafit.errors import UserError
from lorafit.model.intake import CONVERT, INDEX, PICKLES, check_model_files, weight_files
from lorafit.recipe.schema import Model

TINY = Path(__file__).parent / "tiny"
_SETTINGS = ["*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken"]
_SINGLE = ["model.safetensors"]


def resolve_base(base: str) -> str:
    """Where `base` is loaded from: `tiny` is the directory inside the package."""
    return str(TINY) if base == "tiny" else base


def is_hub_id(base: str) -> bool:
    return base != "tiny" and not Path(base).exists()


def local_files(section: Model, *, weights: bool = False, download: bool = True,
                ) -> tuple[Path, str | None]:
    """The directory of a base, and its commit where it is on the hub.

    Everything is loaded from there, by path: no library asks the hub by itself, and configuration,
    tokenizer and weights are of one commit even when the branch moves meanwhile. weights: whether
    they are needed too. download: whether what is not on this machine may be fetched. UserError
    when there is no such base, or its files are refused (`lorafit.model.intake`).
    """
    where, commit = f"model.base: {section.base}", None
    if is_hub_id(section.base):
        folder = _from_hub(section, _settings(section), download)
        commit = folder.name
        check_model_files(folder, may_run_code=section.trust_remote_code, where=where,
                          weights=False)
        if weights:
            folder = _with_weights(section, folder, download)
    else:
        folder = Path(resolve_base(section.base))
    if not folder.is_dir():
        raise UserError("is a file, not a model directory", where,
                        "name a model directory, a hub id, or tiny")
    _look_at(folder, section.trust_remote_code, where, weights, _state(folder))
    return folder, commit


def hub_commit(section: Model) -> str | None:
    """The commit that this run takes of a base on the hub, None where nobody has asked yet."""
    return pins.pinned("model", section.base, section.revision)


@lru_cache(maxsize=64)
def _look_at(folder: Path, may_run_code: bool, where: str, weights: bool, state: object) -> None:
    """`check_model_files`, once for a directory as it is (`state`)."""
    check_model_files(folder, may_run_code=may_run_code, where=where, weights=weights)


def _state(folder: Path) -> tuple[tuple[str, int, int], ...]:
    found = []
    for file in sorted(folder.iterdir()):
        facts = file.stat() if file.exists() else file.lstat()
        found.append((file.name, facts.st_size, facts.st_mtime_ns))
    return tuple(found)


def _settings(section: Model) -> list[str]:
    return [*_SETTINGS, "*.py"] if section.trust_remote_code else _SETTINGS


def _with_weights(section: Model, folder: Path, download: bool) -> Path:
    """The same directory with the files of its weights in it."""
    if (folder / INDEX).exists():
        return _from_hub(section, [file.name for file in weight_files(folder)], download)
    if not any(folder.glob("*.safetensors")):
        folder = _from_hub(section, _SINGLE, download)
    if not any(folder.glob("*.safetensors")):
        folder = _from_hub(section, ["*.safetensors"], download, ["*/*"])
    if download and not any(folder.glob("*.safetensors")):
        _refuse_pickles_of(section)
    return folder


def _refuse_pickles_of(section: Model) -> None:
    """UserError when all that a repository has is pickles, which were not even downloaded."""
    from huggingface_hub import HfApi

    try:
        names = HfApi().list_repo_files(section.base, revision=hub_commit(section))
    except Exception:  # then the reader of the directory says that there is nothing
        return
    for name in names:
        if Path(name).suffix in PICKLES:
            raise UserError(f"holds its weights in {name}, a pickle, which can run code on "
                            "loading; it was not downloaded", f"model.base: {section.base}",
                            CONVERT)


def _from_hub(section: Model, wanted: list[str], download: bool,
              unwanted: list[str] | None = None) -> Path:
    """Files of a repository at the commit that this run has chosen; the first call chooses."""
    from huggingface_hub import snapshot_download

    revision = hub_commit(section) or section.revision
    try:
        folder = Path(snapshot_download(
            section.base, revision=revision, allow_patterns=wanted, ignore_patterns=unwanted,
            local_files_only=not download))
    except Exception as error:
        raise _cannot_fetch(section, error) from None
    pins.pin("model", section.base, section.revision, folder.name)
    return folder


def _cannot_fetch(section: Model, error: Exception) -> UserError:
    message = str(error).strip() or type(error).__name__
    where = f"model.base: {section.base}"
    if "gated" in message.lower() or "401" in message or "403" in message:
        return UserError("the hub refuses access to the model", where,
                         "accept its licence on the hub and log in with `hf auth login`")
    if os.environ.get("HF_HUB_OFFLINE") == "1":
        return UserError(
            "no such directory, and the hub cannot be reached to look for a model of that name",
            where, "check the path or the network; `tiny` needs neither")
    return UserError(f"the base cannot be loaded: {message.splitlines()[0]}", where,
                     "name a model directory, a hub id such as Qwen/Qwen3-0.6B, or tiny")
