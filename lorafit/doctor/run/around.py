"""What else lies in a run directory: artifacts with their proofs, what a crash left behind, a lock.
"""

import os
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from lorafit.doctor.finding import Finding, Section, size
from lorafit.doctor.run.seen import Seen, read_object, settled, size_of
from lorafit.errors import UserError
from lorafit.run_dir import RunDir, sha256

_PROOF = "lorafit_proof.json"  # export/proof.py, which loads torch
_LEFT_BY = {".partial": "was being written", ".replaced": "was being replaced",
            ".removed": "was being removed"}


def examine_holder(run: RunDir, seen: Seen) -> Iterator[Finding]:
    """Whether a process trains in here, by what it wrote down."""
    file = run.path / "running.json"
    section = Section("run")
    try:
        holder = read_object(file)
        pid, host = int(holder["pid"]), str(holder["host"])
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError):
        yield section.note(file.name, "cannot be read; the lock itself is the system's")
        return
    if host != socket.gethostname():
        yield section.note(file.name, f"process {pid} on {host} trains here, or was ended with "
                           "that machine")
    elif _is_alive(pid):
        seen.is_running = True
        yield section.note(file.name, f"process {pid} trains here now")
    else:
        yield section.note(file.name, f"process {pid} trained here and was killed; --resume takes "
                           "over")


def examine_artifacts(run: RunDir, seen: Seen) -> Iterator[Finding]:
    """Merged models and exported adapters, by the hashes of their proofs."""
    section = Section("artifacts")
    for directory in sorted(path.parent for path in run.path.glob(f"*/{_PROOF}")):
        if directory.name.startswith("."):
            continue
        yield from settled(section, directory, partial(_artifact, section, run, directory),
                           was_listed=True)


def examine_left_overs(run: RunDir, seen: Seen) -> Iterator[Finding]:
    """Files that are half written or swapped out, and damaged checkpoints set aside."""
    section = Section("left over")
    for folder in (run.path, run.checkpoints):
        if not folder.is_dir():
            continue
        for path in sorted(folder.iterdir()):
            kind = next((what for end, what in _LEFT_BY.items()
                         if path.name.startswith(".") and path.name.endswith(end)), None)
            if kind is not None:
                if path.exists():
                    yield _left_over(section, path, kind, seen)
            elif path.name.startswith("damaged-"):
                yield section.note(path.name, f"{size(size_of(path))}, set aside by an earlier "
                                   "--resume; nothing reads it")


def _artifact(section: Section, run: RunDir, directory: Path) -> list[Finding]:
    from lorafit.export.proof import changes, read_proof

    remedy = f"make it again: lorafit merge or export-adapter {run.path} --output …"
    try:
        proof = read_proof(directory)
    except UserError as error:
        return [section.problem(directory.name, error.problems[0].what, remedy)]
    if proof is None:
        raise FileNotFoundError(directory)
    if wrong := changes(directory, proof):
        return [section.problem(directory.name, "; ".join(wrong[:3]) + (
            f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""), remedy)]
    text = f"{proof.get('form', '')}, {size(size_of(directory))}, every file as its proof has it"
    if not _is_of(run.adapter, proof["trained_adapter"]):
        return [section.warning(directory.name, f"{text}; but it was made of another adapter than "
                                "adapter/ is now", remedy)]
    return [section.ok(directory.name, text)]


def _is_of(adapter: Path, hashes: dict[str, Any]) -> bool:
    return all(not (adapter / name).is_file() or sha256(adapter / name) == digest
               for name, digest in hashes.items())


def _left_over(section: Section, path: Path, kind: str, seen: Seen) -> Finding:
    held = size(size_of(path))
    original = path.with_name(path.name[1:].rpartition(".")[0])
    if seen.is_running:
        return section.note(path.name, f"{held}, {kind}: the run goes on")
    if path.name.endswith(".replaced") and not original.exists():
        return section.warning(path.name, f"{held}: {original.name} was being replaced when the "
                               "process was killed, and is missing",
                               f"--resume brings it back; by hand: mv {path} {original}")
    return section.note(path.name, f"{held}, {kind} when the process was killed; --resume removes "
                        "it")


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
