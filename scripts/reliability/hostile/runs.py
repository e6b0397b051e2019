"""Run directories and artifacts of runs, with files in them that somebody has changed."""

import json
from collections.abc import Callable
from pathlib import Path

from reliability.hostile.artifact import Artifact, Place, changed, pickled

_DEEP = '{"a":' * 100_000 + "1" + "}" * 100_000
_GENERATE = ["generate", "{evil}", "--prompt", "hi", "--max-new-tokens", "1"]


def _file(name: str, content: str, verb: list[str]) -> Callable[[Place], list[str]]:
    def make(place: Place) -> list[str]:
        (place.run() / name).write_text(content.replace("{canary}", str(place.canary)))
        return [word.replace("{evil}", str(place.evil)) for word in verb]

    return make


def _code_of_base(place: Place) -> list[str]:
    base = place.evil.parent / "evil-base"
    inner = Place(place.work, base, place.canary, place.trained)
    inner.base()
    inner.module("evil.py")
    changed(base / "config.json", auto_map={"AutoConfig": "evil.Config"})
    recipe = place.run() / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("base: tiny", f"base: {base}").replace(
        "trust_remote_code: false", "trust_remote_code: true"))
    return [word.replace("{evil}", str(place.evil)) for word in _GENERATE]


def _linked(name: str, verb: list[str]) -> Callable[[Place], list[str]]:
    """A run in which something that is written is a link to a place outside."""

    def make(place: Place) -> list[str]:
        elsewhere = place.evil.parent / "elsewhere"
        elsewhere.mkdir()
        target = place.run() / name
        if target.is_dir():
            target.rename(elsewhere / "moved")
            target.symlink_to(elsewhere / "moved")
        else:
            target.unlink(missing_ok=True)
            target.symlink_to(elsewhere / "file")
            (elsewhere / "file").write_text("{}")
        return [word.replace("{evil}", str(place.evil)) for word in verb]

    return make


def _newest(run: Path) -> Path:
    return sorted((run / "checkpoints").glob("step-*"))[-1]


def _resumed(change: Callable[[Path, Place], None]) -> Callable[[Place], list[str]]:
    """A run whose only checkpoint is changed, with its manifest made to fit where there is one."""

    def make(place: Place) -> list[str]:
        run = place.run()
        for name in ("result.json",):
            (run / name).unlink(missing_ok=True)
        change(_newest(run), place)
        return ["train", str(run / "recipe.yaml"), "--resume", "--set", f"output.dir={run}"]

    return make


def _climbing_manifest(checkpoint: Path, place: Place) -> None:
    values = json.loads((checkpoint / "manifest.json").read_text())
    (checkpoint / "manifest.json").write_text(json.dumps({**values, "../../../../x": "0" * 64}))


def _pickles_beside(checkpoint: Path, place: Place) -> None:
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
        (checkpoint / name).write_bytes(pickled(place.canary))


def _pickle_as(name: str) -> Callable[[Path, Place], None]:
    def change(checkpoint: Path, place: Place) -> None:
        (checkpoint / name).write_bytes(pickled(place.canary))

    return change


def _deep(name: str) -> Callable[[Path, Place], None]:
    def change(checkpoint: Path, place: Place) -> None:
        (checkpoint / name).write_text(_DEEP)

    return change


def _gguf(place: Place) -> list[str]:
    place.evil.mkdir(exist_ok=True)
    (place.evil / "model.gguf").write_bytes(b"GGUF" + (3).to_bytes(4, "little")
                                            + (1 << 60).to_bytes(8, "little") * 2)
    return ["verify", str(place.evil), "--against", str(place.trained)]


def _proof(place: Place) -> list[str]:
    (place.adapter() / "lorafit_proof.json").write_text(_DEEP)
    return ["verify", str(place.evil), "--against", str(place.trained)]


def _kept_evaluation(place: Place) -> list[str]:
    (place.run() / "evaluations").mkdir(exist_ok=True)
    (place.evil / "evaluations" / "a.json").write_text(_DEEP)
    return ["eval", str(place.evil), str(place.trained), "--compare"]


ARTIFACTS = (
    Artifact("a record nested 100,000 deep", "run", _file("record.json", _DEEP, _GENERATE)),
    Artifact("a record with odd sizes", "run",
             _file("record.json", '{"base_sizes": [1], "base_commit": 5}', _GENERATE)),
    Artifact("a run's recipe with a tag", "run", _file(
        "recipe.yaml", "model: !!python/object/apply:os.system ['touch {canary}']", _GENERATE)),
    Artifact("a run's recipe that wants code to run", "run", _code_of_base),
    Artifact("a run's chat template that looks around", "run", _file(
        "chat_template.jinja",
        "{{ cycler.__init__.__globals__.os.system('touch {canary}') }}", _GENERATE)),
    Artifact("held-out rows nested 100,000 deep", "run",
             _file("held_out.jsonl", _DEEP + "\n", ["merge", "{evil}", "-o", "out"])),
    Artifact("held-out rows that are no tokens", "run",
             _file("held_out.jsonl", '{"token_ids": ["a", -1]}\n[]\n',
                   ["merge", "{evil}", "-o", "out"])),
    Artifact("evaluations that are a link out", "traversal",
             _linked("evaluations", ["eval", "{evil}"])),
    Artifact("a half-written file that is a link out", "traversal",
             _linked(".evaluation.json.partial", ["eval", "{evil}"])),
    Artifact("checkpoints that are a link out", "traversal", _linked(
        "checkpoints", ["train", "{evil}/recipe.yaml", "--resume", "--set", "output.dir={evil}"])),
    Artifact("metrics that are a link out", "traversal", _linked(
        "metrics.jsonl", ["train", "{evil}/recipe.yaml", "--resume",
                          "--set", "output.dir={evil}"])),
    Artifact("a proof nested 100,000 deep", "run", _proof),
    Artifact("an evaluation nested 100,000 deep", "run", _kept_evaluation),
    Artifact("a GGUF of 2^60 tensors", "header", _gguf),
    Artifact("a manifest that climbs out", "run", _resumed(_climbing_manifest), (0, 2)),
    Artifact("pickles beside a checkpoint", "pickle", _resumed(_pickles_beside), (0, 2)),
    Artifact("an optimizer's state that is a pickle", "pickle",
             _resumed(_pickle_as("optimizer.safetensors")), (0, 2)),
    Artifact("a checkpoint's state nested 100,000 deep", "run", _resumed(_deep("state.json")),
             (0, 2)),
    Artifact("a checkpoint's manifest nested 100,000 deep", "run",
             _resumed(_deep("manifest.json")), (0, 2)),
)
