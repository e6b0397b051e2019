"""A virtual environment for another program, built from the package index and kept for later."""

import hashlib
import json
import os
import re
import subprocess
import sys
import venv
from dataclasses import asdict, dataclass
from pathlib import Path

BUILT = "built.json"
# Asks an installed package what it needs here; extras that were not asked for are left out.
NEEDS = """
import importlib.metadata, sys
from packaging.requirements import Requirement
for line in importlib.metadata.requires(sys.argv[1]) or []:
    need = Requirement(line)
    if need.marker is None or need.marker.evaluate({"extra": ""}):
        need.marker = None
        print(need)
"""


class BuildError(Exception):
    """pip refused. The text says what it said, and where its log is."""


@dataclass(frozen=True)
class Environment:
    """What is installed for a program, after torch.

    packages: pinned, the program first. without: needs of these packages that are left out, because
    they do not run or are not wanted beside this torch. first: what must be there before, such as
    what a package imports while it is being built. also: what a package uses without naming it.
    """

    name: str
    packages: tuple[str, ...]
    without: tuple[str, ...] = ()
    first: tuple[str, ...] = ()
    also: tuple[str, ...] = ()

    def python(self, work: Path) -> Path:
        return work / "envs" / self.name / "bin" / "python"


def build(environment: Environment, torch: str | None, work: Path) -> None:
    """Builds `environment` under `work`, unless one built from the same list is there.

    The needs of the packages are installed as the packages state them, save `without`; torch stays
    at the given version throughout. None: the program is not built on torch.
    """
    folder = work / "envs" / environment.name
    wanted = {**asdict(environment), "torch": torch}
    digest = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()
    built = folder / BUILT
    if built.is_file() and json.loads(built.read_text())["digest"] == digest:
        return
    log = work / "logs" / f"build-{environment.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("")
    print(f"building the environment {environment.name} (log: {log})", flush=True)
    if not environment.python(work).is_file():
        venv.create(folder, with_pip=True, symlinks=True)
    constraints = folder / "constraints.txt"
    pinned = () if torch is None else (f"torch=={torch}",)
    constraints.write_text("\n".join(pinned) + "\n")

    def pip(*arguments: str) -> None:
        run([str(environment.python(work)), "-m", "pip", "install", *arguments], log)

    # torch goes first and alone: the constraint then keeps every later install from another build.
    pip(*pinned, "packaging", "wheel", "setuptools<81")
    for group in (environment.first, environment.also):
        if group:
            pip("-c", str(constraints), *group)
    pip("-c", str(constraints), "--no-deps", *environment.packages)
    needs = [need for package in environment.packages
             for need in needs_of(environment.python(work), distribution(package))
             if distribution(need) not in {*map(normal, environment.without),
                                          *map(distribution, pinned)}]
    own = {distribution(package) for package in environment.packages}
    needs = [need for need in needs if distribution(need) not in own]
    if needs:
        pip("-c", str(constraints), *needs)
    # A need's own needs may have pulled in what was to be left out.
    for name in environment.without:
        run([str(environment.python(work)), "-m", "pip", "uninstall", "-y", name], log)
    versions = subprocess.run([str(environment.python(work)), "-m", "pip", "freeze"],
                              capture_output=True, text=True).stdout.splitlines()
    built.write_text(json.dumps({"digest": digest, "versions": versions}, indent=1))


def needs_of(python: Path, package: str) -> list[str]:
    out = subprocess.run([str(python), "-c", NEEDS, package], capture_output=True, text=True)
    if out.returncode:
        raise BuildError(f"the needs of {package} cannot be read: {out.stderr.strip()}")
    return out.stdout.splitlines()


def run(command: list[str], log: Path) -> None:
    """Runs pip. It must not see the caller's own packages."""
    surroundings = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with log.open("a", encoding="utf-8") as file:
        file.write(" ".join(command) + "\n")
        file.flush()
        done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=surroundings)
    if done.returncode:
        errors = [line for line in log.read_text(encoding="utf-8").splitlines()
                  if line.startswith("ERROR")]
        raise BuildError(f"{errors[-1] if errors else 'pip failed'} ({log})")


def versions(environment: Environment, work: Path) -> dict[str, str]:
    """Name to version of what is installed."""
    built = work / "envs" / environment.name / BUILT
    if not built.is_file():
        return {}
    found = (line.partition("==") for line in json.loads(built.read_text())["versions"])
    return {normal(name): version for name, _, version in found}


def distribution(requirement: str) -> str:
    """The normal name in a requirement such as `Foo_bar[x]>=1`."""
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match, requirement
    return normal(match[0])


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    sys.exit("This is a part of scripts/bench_peers.py and scripts/prove_engines.py.")
