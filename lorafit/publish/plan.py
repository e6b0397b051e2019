"""What would be uploaded of an artifact, and what never is."""

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from lorafit.errors import Problem, UserError, VerificationError
from lorafit.export.proof import CARD, PROOF, changes, covered_files, read_proof
from lorafit.run_dir import RunDir, committed_directory, read_json, refuse_target
from lorafit.secrets import secret_in

# Never uploaded, whatever is allowed.
_SECRET_NAMES = (".env", ".env.*", "*.pem", "*.key", "*.p12", "*.pfx", "id_rsa*", "id_ed25519*",
                 ".netrc", ".npmrc", ".pypirc", ".git-credentials", "*credentials*.json", "token",
                 "*.kdbx")
# Left by training; of no use to others, and with rows or paths of whoever trained.
_LEFTOVERS = {
    "a checkpoint": ("step-*", "checkpoint-*", "checkpoints", "trained.safetensors",
                     "manifest.json"),
    "the state of an optimizer": ("optimizer*", "scheduler.pt", "rng_state*", "trainer_state.json",
                                  "training_args.bin", "scaler.pt"),
    "rows or logs of training": ("*.jsonl", "*.parquet", "*.arrow", "*.csv", "*.tsv", "record.json",
                                 "recipe.yaml", "result.json", "events.out.tfevents*", "wandb",
                                 "*.log"),
    "a pickle, which can run code on loading": ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt"),
}
_ALWAYS = (CARD, PROOF, ".gitattributes")  # beside what the proof covers
_FOR_PEOPLE = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")
_SKIPPED = {".git", ".cache"}  # what git and downloads leave; not part of an artifact
_READ_FOR_SECRETS_BYTES = 4 << 20


@dataclass(frozen=True)
class PlannedFile:
    """A file by its path in the repository."""

    name: str
    size_bytes: int
    sha256: str | None  # as the proof has it; None for what it does not cover


@dataclass(frozen=True)
class Plan:
    """The files of an artifact that would be uploaded, and what there is to know before."""

    artifact: Path
    files: list[PlannedFile]
    remarks: list[str] = field(default_factory=list)

    @property
    def total_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)


def make_plan(artifact: Path, allowed: Sequence[str] = ()) -> Plan:
    """Look at every file of an artifact.

    UserError, with every reason, for secrets, leftovers of training and what nobody expects;
    VerificationError when a file is not as the proof has it.
    """
    proof = _proof_of(artifact)
    names = [file.relative_to(artifact).as_posix() for file in sorted(artifact.rglob("*"))
             if file.is_file() and not _SKIPPED & set(file.relative_to(artifact).parts)]
    if problems := [problem for name in names
                    if (problem := _problem(artifact, name, proof, allowed))]:
        raise UserError(problems=problems)
    for name in allowed:
        if name not in names:
            raise UserError("no such file in the artifact", f"--allow {name}",
                            "name it by its path below the artifact")
    known = [change for change in changes(artifact, proof)
             if not any(change.startswith(f"{name} is not in the proof")
                        for name in _unproven(artifact, proof, allowed))]
    if known:
        raise VerificationError(f"{artifact}: is not what its proof says: {'; '.join(known)}\n"
                                "    nothing was uploaded; export it again")
    files = [PlannedFile(name, (artifact / name).stat().st_size,
                         proof["files"].get(name, {}).get("sha256")) for name in names]
    return Plan(artifact, files, _remarks(artifact, proof, names))


def write_to(plan: Plan, directory: Path) -> None:
    """Write exactly what would be uploaded to a directory that does not exist yet."""
    refuse_target(directory, "choose another with --to-dir")
    with committed_directory(directory) as partial:
        for file in plan.files:
            (partial / file.name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(plan.artifact / file.name, partial / file.name)


def _proof_of(artifact: Path) -> dict[str, Any]:
    if not artifact.is_dir():
        raise UserError("no such directory", str(artifact),
                        "name what lorafit merge or export-adapter wrote")
    if RunDir(artifact).recipe.exists():
        raise UserError("is a run: it holds checkpoints and rows, which are not published",
                        str(artifact), "export it first (lorafit export-adapter, lorafit merge) "
                        "and push what was written")
    proof = read_proof(artifact)
    if proof is None:
        raise UserError(f"has no {PROOF}, so nobody has checked what it computes", str(artifact),
                        f"lorafit verify {artifact} --against RUN writes one")
    return proof


def _problem(artifact: Path, name: str, proof: dict[str, Any],
             allowed: Iterable[str]) -> Problem | None:
    file = artifact / name
    remove = "take it out of the artifact"
    if _matches(name, _SECRET_NAMES):
        return Problem("looks like a secret by its name", str(file), remove)
    if not file.resolve().is_relative_to(artifact.resolve()):
        return Problem("is a link to a file outside of the artifact", str(file), remove)
    if what := _secret_in(file):
        return Problem(f"holds what looks like {what}", str(file),
                       "take it out, and have it replaced where it was issued")
    if name in proof["files"] or name in _ALWAYS or name in allowed:
        return None
    for what, patterns in _LEFTOVERS.items():
        if _matches(name, patterns):
            return Problem(f"is {what}", str(file), f"{remove}, or say --allow {name}")
    if _matches(name, _FOR_PEOPLE):
        return None
    return Problem("is not in the proof, so nobody expects it", str(file),
                   f"{remove}, or say --allow {name}")


def _unproven(artifact: Path, proof: dict[str, Any], allowed: Iterable[str]) -> list[str]:
    """Files that may be there although the proof does not know them."""
    return [name for name in covered_files(artifact) if name not in proof["files"]
            and (name in allowed or _matches(name, _FOR_PEOPLE))]


def _matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether the name of a file, or of a directory above it, is like one of the patterns."""
    return any(fnmatch(part.lower(), pattern.lower()) for pattern in patterns
               for part in name.split("/"))


def _secret_in(file: Path) -> str | None:
    """What a small text file seems to give away."""
    if file.suffix == ".safetensors" or file.stat().st_size > _READ_FOR_SECRETS_BYTES:
        return None
    return secret_in(file.read_bytes().decode("utf-8", "replace"))


def _remarks(artifact: Path, proof: dict[str, Any], names: Sequence[str]) -> list[str]:
    found = []
    if CARD not in names:
        found.append("it has no README.md: the hub will show an empty page")
    elif "licence was not known" in (artifact / CARD).read_text(encoding="utf-8"):
        found.append("README.md names no licence, because the base's was not known")
    if not proof["base"]["on_hub"]:
        found.append(f"its base, {proof['base']['name']}, is no model of the hub: whoever gets the "
                     "adapter cannot load it by name")
    config = artifact / "adapter_config.json"
    place = read_json(config).get("base_model_name_or_path") if config.is_file() else None
    if place and Path(place).is_absolute():
        found.append(f"adapter_config.json names a directory of this machine as base: {place}")
    return found
