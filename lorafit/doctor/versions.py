"""Installed packages: against the ranges that lorafit asks for, those that were tested, and each
other. Reads metadata only; nothing is imported."""

import json
import platform
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from lorafit import __version__
from lorafit.doctor.finding import Finding, Section
from lorafit.doctor.known_pairs import PAIRS

TESTED = Path(__file__).parent / "tested.json"
EXTRAS = {
    "quantization": "bases in nf4, fp4 and int8, 8-bit AdamW",
    "compressed-tensors": "bases that come in compressed-tensors",
    "torchao": "bases that come in torchao's formats",
    "lm-eval": "lorafit eval --tasks",
    "gguf": "files for llama.cpp and Ollama",
    "plots": "lorafit report --png",
    "tensorboard": "output.trackers: tensorboard",
}
# Not lorafit's to install: what each is for.
OTHERS = {
    "flash-attn": "model.attention: flash_attention_2, on NVIDIA GPUs",
    "vllm": "lorafit serve --engine vllm",
    "sglang": "lorafit serve --engine sglang",
    "gptqmodel": "bases that come in GPTQ or AWQ",
    "deepspeed": "accelerate launch with ZeRO",
}


@dataclass
class Installed:
    """Distributions by normalised name: the one that is imported, and others of the same name."""

    first: dict[str, metadata.Distribution] = field(default_factory=dict)
    places: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def here(cls) -> "Installed":
        found = cls()
        seen: set[str] = set()
        for one in metadata.distributions():
            name = one.metadata["Name"]
            place = str(getattr(one, "_path", one.locate_file("")))
            if not name or place in seen:  # a folder may stand on the path twice
                continue
            seen.add(place)
            found.first.setdefault(normalised(name), one)
            found.places.setdefault(normalised(name), []).append(place)
        return found

    def version(self, name: str) -> str | None:
        one = self.first.get(normalised(name))
        return None if one is None else one.version


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def examine_versions() -> Iterator[Finding]:
    """Python and lorafit, every package it asks for, its extras, and what does not go together."""
    section = Section("packages")
    try:
        import packaging.requirements
        import packaging.version  # noqa: F401
    except ImportError as error:
        yield section.ok("Python", f"{platform.python_version()} ({sys.executable})")
        yield section.failed("packaging", error, "pip install packaging; without it versions are "
                             "not compared")
        return
    installed = Installed.here()
    own = installed.first.get("lorafit")
    yield _python(section, None if own is None else own.metadata["Requires-Python"])
    if own is None:
        yield section.warning("lorafit", f"{__version__}, not installed: which versions it needs "
                              "is not known", "pip install -e . in its directory")
        return
    if own.version != __version__:
        yield section.warning("lorafit", f"{__version__} runs, {own.version} is what is installed",
                              "see PYTHONPATH; pip install it again")
    else:
        yield section.ok("lorafit", own.version)
    asked = _asked(own)
    tested: dict[str, str] = json.loads(TESTED.read_text(encoding="utf-8"))["versions"]
    for requirement, extra in asked:
        yield from _package(section, requirement, extra, installed, tested)
    for pair in PAIRS:
        if pair.applies({name: installed.version(name) for name in pair.when}):
            yield section.problem(pair.name, pair.what, pair.remedy)
    yield from _each_other(section, installed, {normalised(r.name) for r, extra in asked
                                                if not extra or r.name in installed.first})
    yield from _twice(section, installed)


def examine_extras() -> Iterator[Finding]:
    """What may be installed besides, and what for."""
    section = Section("optional")
    for name, purpose in OTHERS.items():
        try:
            yield section.note(name, f"{metadata.version(name)}: {purpose}")
        except metadata.PackageNotFoundError:
            yield section.note(name, f"not installed: {purpose}")


def _python(section: Section, wanted: str | None) -> Finding:
    from packaging.specifiers import SpecifierSet

    text = f"{platform.python_version()} ({sys.executable})"
    if wanted and not SpecifierSet(wanted).contains(platform.python_version(), prereleases=True):
        return section.problem("Python", f"{text}: lorafit needs {wanted}", "make an environment "
                               "with another Python")
    return section.ok("Python", text)


def _asked(own: metadata.Distribution) -> list[tuple[Any, str]]:
    """The requirements of lorafit itself, and of its extras but dev, with the extra's name."""
    from packaging.requirements import Requirement

    found: list[tuple[Any, str]] = []
    for text in own.requires or []:
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            found.append((requirement, ""))
            continue
        found += [(requirement, extra) for extra in EXTRAS
                  if requirement.marker.evaluate({"extra": extra})]
    return found


def _package(section: Section, requirement: Any, extra: str, installed: Installed,
             tested: dict[str, str]) -> Iterator[Finding]:
    from packaging.version import InvalidVersion, Version

    name, version = requirement.name, installed.version(requirement.name)
    install = f"pip install '{requirement.name}{requirement.specifier}'"
    if version is None:
        if extra:
            yield section.note(name, f"not installed: {EXTRAS[extra]}",
                               f"pip install 'lorafit[{extra}]'")
        else:
            yield section.problem(name, "not installed", install)
        return
    try:
        parsed = Version(version)
    except InvalidVersion:
        yield section.warning(name, f"{version} is no version that can be compared", install)
        return
    if not requirement.specifier.contains(parsed, prereleases=True):
        yield section.problem(name, f"{version} is not supported: lorafit needs "
                              f"{requirement.specifier}", install)
        return
    known = tested.get(normalised(name))
    if known is not None and parsed.release[:2] > Version(known).release[:2]:
        yield section.warning(name, f"{version} is newer than what was tested ({known})",
                              f"if something fails: pip install '{name}=={known}'")
        return
    yield section.ok(name, version if not extra else f"{version}: {EXTRAS[extra]}")


def _each_other(section: Section, installed: Installed, roots: set[str]) -> Iterator[Finding]:
    """Requirements of installed packages that are not met: a problem below what lorafit uses, a
    warning elsewhere if they ask for something that it uses."""
    from packaging.requirements import InvalidRequirement, Requirement

    used = _below(installed, roots)
    for name in sorted(installed.first):
        if name == "lorafit":
            continue
        for text in installed.first[name].requires or []:
            try:
                requirement = Requirement(text)
            except InvalidRequirement:
                continue
            wanted = normalised(requirement.name)
            if wanted not in used or (
                    requirement.marker is not None and not requirement.marker.evaluate(
                        {"extra": ""})):
                continue
            version = installed.version(wanted)
            if version is not None and requirement.specifier.contains(version, prereleases=True):
                continue
            what = (f"needs {requirement.name}{requirement.specifier}, and "
                    f"{'it is not installed' if version is None else f'{version} is installed'}")
            remedy = f"pip install '{requirement.name}{requirement.specifier}'"
            if name in used:
                yield section.problem(name, what, remedy)
            else:
                yield section.warning(name, what, f"nothing of lorafit uses {name}; put it into an "
                                      "environment of its own if you need it")


def _below(installed: Installed, roots: set[str]) -> set[str]:
    """What `roots` need, and what that needs."""
    from packaging.requirements import InvalidRequirement, Requirement

    found: set[str] = set()
    waiting = list(roots)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        one = installed.first.get(name)
        for text in (one.requires or []) if one is not None else []:
            try:
                requirement = Requirement(text)
            except InvalidRequirement:
                continue
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(normalised(requirement.name))
    return found


def _twice(section: Section, installed: Installed) -> Iterator[Finding]:
    for name, places in sorted(installed.places.items()):
        if len(places) > 1 and name != "lorafit":
            one = Path(places[0])
            yield section.warning(
                name, f"is installed {len(places)} times; {installed.first[name].version} in "
                f"{one.parent} comes first", f"see PYTHONPATH; pip uninstall {name} until it is "
                "gone, then install it once")
