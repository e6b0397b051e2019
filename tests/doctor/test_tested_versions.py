"""The versions that the tests run with are written once, in constraints.txt."""

import json
import os
import re
import tomllib
from pathlib import Path

from lorafit.doctor.versions import EXTRAS, TESTED, normalised

ROOT = Path(__file__).parent.parent.parent


def test_what_the_package_says_was_tested_is_what_constraints_txt_pins() -> None:
    """Written anew by `make docs`."""
    pinned = dict(line.split("==") for line in
                  (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
                  if "==" in line)
    versions = {normalised(name): version for name, version in pinned.items()}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [*project["dependencies"],
             *(each for extra in EXTRAS for each in project["optional-dependencies"][extra])]
    names = sorted(normalised(re.split(r"[^\w.-]", each)[0]) for each in asked)
    text = json.dumps({"comment": "made from constraints.txt by `make docs`",
                       "versions": {name: versions[name] for name in names}}, indent=2) + "\n"
    if os.environ.get("LORAFIT_WRITE_DOCS"):
        TESTED.write_text(text, encoding="utf-8")
    assert TESTED.read_text(encoding="utf-8") == text, "run make docs"


def test_every_extra_for_users_has_its_purpose() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert EXTRAS.keys() == project["optional-dependencies"].keys() - {"dev"}
