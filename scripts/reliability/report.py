"""What the proof found: lines while it runs, a page and JSON at its end."""

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata

from reliability.proof import Proof
from reliability.row import Tally

PROBLEMS_SHOWN = 5
_LIBRARIES = ("torch", "transformers", "peft", "accelerate", "safetensors")


def say(proof: Proof) -> None:
    """A row that is done."""
    print(f"{proof.row.name:16} {_count(proof.tally):>10}  {proof.seconds:6.0f} s  "
          f"{proof.row.must}", flush=True)
    _say_more(proof.tally)
    if proof.peer is not None:
        print(f"{'  of the peer':16} {_count(proof.peer):>10}  {proof.peer_seconds:6.0f} s",
              flush=True)
        _say_more(proof.peer)


def _say_more(tally: Tally) -> None:
    for remark in tally.remarks:
        print(f"    {remark}", flush=True)
    for problem in tally.problems[:PROBLEMS_SHOWN]:
        print(f"    ! {problem}", flush=True)
    if (more := len(tally.problems) - PROBLEMS_SHOWN) > 0:
        print(f"    ! and {more} more", flush=True)


def page(proofs: Sequence[Proof], seed: int) -> str:
    """A table in Markdown, with notes."""
    minutes = sum(proof.seconds + proof.peer_seconds for proof in proofs) / 60
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in _LIBRARIES)
    lines = [
        "| what was done | must be | lorafit | Trainer + peft |",
        "|---|---|---|---|",
    ]
    for proof in proofs:
        beside = "" if proof.peer is None else _count(proof.peer)
        mark = _count(proof.tally) if proof.is_reached else f"**{_count(proof.tally)}**"
        lines.append(f"| {proof.row.title} | {proof.row.must} | {mark} | {beside} |")
    notes = [f"- {proof.row.name}: {remark}" for proof in proofs for remark in proof.tally.remarks]
    notes += [f"- {proof.row.name}, Trainer + peft: {remark}" for proof in proofs
              if proof.peer is not None for remark in proof.peer.remarks]
    failures = [f"- {proof.row.name}, Trainer + peft: {_short(proof.peer.problems[0])}"
                for proof in proofs if proof.peer is not None and proof.peer.problems]
    lines += ["", *notes]
    if failures:
        lines += ["", "The first of each that went wrong for the script:", "", *failures]
    lines += ["", f"Seed {seed}, {minutes:.0f} minutes on {os.cpu_count()} cores "
              f"({platform.machine()}, Python {platform.python_version()}), {versions}."]
    return "\n".join(lines) + "\n"


def as_json(proofs: Sequence[Proof]) -> str:
    return json.dumps([
        {"name": proof.row.name, "title": proof.row.title, "must": proof.row.must,
         "wanted": proof.wanted, "reached": proof.is_reached, "seconds": round(proof.seconds, 1),
         **asdict(proof.tally), "peer": None if proof.peer is None else asdict(proof.peer)}
        for proof in proofs], indent=2, ensure_ascii=False) + "\n"


def _count(tally: Tally) -> str:
    return f"{tally.passed}/{tally.asked}"


def _short(problem: str) -> str:
    return " ".join(problem.split())[:200]
