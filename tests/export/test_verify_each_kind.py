"""Every kind of adapter, exported and merged, is verified from its files."""

from pathlib import Path

import pytest

from lorafit.export.adapter import export_adapter
from lorafit.export.merge import merge
from lorafit.model.trained import open_adapter
from lorafit.verify.against import Asked, verify_against
from lorafit.verify.artifact import open_artifact

ASKED = Asked(prompts=2, tokens=6)


@pytest.mark.long
@pytest.mark.parametrize("name", ["rslora", "patterns", "dora", "saved", "layers", "pissa", "ia3",
                                  "paca", "full", "prompt_tuning"])
def test_each_kind_of_adapter_is_verified(run_of, tmp_path: Path, name: str) -> None:
    source = open_adapter(run_of(name))
    artifacts = []
    if name != "full":
        artifacts.append(export_adapter(source, tmp_path / "exported").directory)
    if name != "prompt_tuning":
        artifacts.append(merge(source, tmp_path / "merged").directory)
    for artifact in artifacts:
        found = verify_against(open_artifact(artifact), source, ASKED)
        assert found.passed, found
        assert found.compared[0].facts["greedy_answers"] == 2
