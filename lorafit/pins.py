"""The commit that a name on the hub stood for when this run first asked.

A branch may move between two requests. Whoever resolves a name keeps the commit here, and every
later load of the run takes that one: configuration, tokenizer and weights belong together. Kept in
the environment, so that loader workers and the ranks of a launcher agree.
"""

import json
import os
import re
from collections.abc import Mapping

_VARIABLE = "LORAFIT_PINS"
_COMMIT = re.compile(r"[0-9a-f]{40}")


def pinned(kind: str, name: str, revision: str | None) -> str | None:
    """The commit of a `model` or `dataset` at a revision; None where nobody has resolved it."""
    return _kept().get(_key(kind, name, revision))


def pin(kind: str, name: str, revision: str | None, commit: str) -> None:
    """Let a name stand for a commit from now on."""
    os.environ[_VARIABLE] = json.dumps({**_kept(), _key(kind, name, revision): commit,
                                        _key(kind, name, commit): commit})


def commits() -> dict[str, str]:
    """Everything that was resolved, for the record: `dataset owner/name@main` to the commit."""
    return {key: commit for key, commit in sorted(_kept().items())
            if not key.endswith(f"@{commit}")}


def restore(kept: object) -> None:
    """Take the commits that a record holds (`commits()` of an earlier run); odd ones are left."""
    if isinstance(kept, Mapping):
        for key, commit in kept.items():
            kind, _, rest = str(key).partition(" ")
            name, _, revision = rest.rpartition("@")
            if name and isinstance(commit, str) and _COMMIT.fullmatch(commit):
                pin(kind, name, revision, commit)


def forget() -> None:
    """Another run begins in this process."""
    os.environ.pop(_VARIABLE, None)


def _kept() -> dict[str, str]:
    kept: dict[str, str] = json.loads(os.environ.get(_VARIABLE) or "{}")
    return kept


def _key(kind: str, name: str, revision: str | None) -> str:
    return f"{kind} {name}@{revision or 'main'}"
