"""An artifact against its own proof: every changed byte is found and named."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from safetensors import safe_open

from lorafit.errors import UserError
from lorafit.export.proof import CARD, PROOF, read_proof
from lorafit.model.base import TINY
from lorafit.verify.artifact import open_artifact
from lorafit.verify.unchanged import verify_unchanged
from tests.verify.conftest import trained


def wrong(artifact: Path, base: str | None = None) -> list[str]:
    found = verify_unchanged(open_artifact(artifact), base)
    return [figure.value for each in found.compared for figure in each.figures
            if figure.passed is False]


def test_the_proof_says_where_the_artifact_is_from(run, exported):
    proof = json.loads((exported / PROOF).read_text())
    for name, facts in proof["files"].items():
        assert facts["sha256"] == hashlib.sha256((exported / name).read_bytes()).hexdigest()
    on_disk = {str(file.relative_to(exported)) for file in exported.rglob("*") if file.is_file()}
    assert on_disk == proof["files"].keys() | {PROOF, CARD}
    weights = (run / "adapter" / "adapter_model.safetensors").read_bytes()
    assert proof["trained_adapter"]["adapter_model.safetensors"] == \
        hashlib.sha256(weights).hexdigest()
    assert proof["recipe_sha256"] == hashlib.sha256((run / "recipe.yaml").read_bytes()).hexdigest()
    assert proof["base"]["weights"]["model.safetensors"] == \
        "26ac44246a04c4ea7346a128a107415fecb56ca2a243d7f26fd5c79fa78e4a27"  # model/tiny/README.md
    assert proof["rows"]["rows"] == 4
    assert proof["measured"]["the base with the run's adapter"]["bit_equal"]
    assert proof["versions"].keys() >= {"lorafit", "torch", "transformers", "peft"}
    assert str(run.parent) not in (exported / PROOF).read_text()  # nobody's paths


def test_every_changed_byte_is_found_and_named(exported, merged, copy):
    assert wrong(exported) == []
    for artifact in (exported, merged):
        spoilt = copy(artifact)
        for name in read_proof(spoilt)["files"]:
            content = bytearray((spoilt / name).read_bytes())
            content[len(content) // 2] ^= 1
            (spoilt / name).write_bytes(content)
            assert wrong_files(spoilt) == [
                f"{name} is changed: its SHA-256 is another"]
            content[len(content) // 2] ^= 1
            (spoilt / name).write_bytes(content)
        assert wrong_files(spoilt) == []


def wrong_files(artifact: Path) -> list[str]:
    from lorafit.export.proof import changes

    return changes(artifact, read_proof(artifact))


def test_missing_and_added_files_are_named_and_the_card_is_free(exported, copy):
    spoilt = copy(exported)
    (spoilt / CARD).write_text("my own words")
    (spoilt / ".cache").mkdir()
    (spoilt / ".cache" / "left.json").write_text("{}")
    assert wrong(spoilt) == []
    (spoilt / "tokenizer.json").unlink()
    (spoilt / "modeling.py").write_text("print()")
    text = wrong(spoilt)[0]
    assert "tokenizer.json is missing" in text
    assert "modeling.py is not in the proof" in text


def test_another_base_is_told_and_one_that_is_not_here_too(tmp_path):
    """A local base: its path is in nobody's proof, and it is given with --base."""
    from lorafit.cli.verbs.run import merge

    base = Path(shutil.copytree(TINY, tmp_path / "mine"))
    run = trained(tmp_path, "run", model={"base": str(base)})
    merge(run, None, None, None)
    artifact = run / "merged"
    proof = read_proof(artifact)
    assert proof["base"]["name"] == "mine"
    assert wrong(artifact) == []
    assert wrong(artifact, str(base)) == []
    told = verify_unchanged(open_artifact(artifact), None).compared[0].figures[1]
    assert "name it with --base" in told.value
    content = bytearray((base / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (base / "model.safetensors").write_bytes(content)
    assert wrong(artifact, str(base)) == ["mine: model.safetensors is different than the proof "
                                          "has it"]


def test_a_damaged_or_missing_proof_is_refused(exported, copy):
    artifact = copy(exported)
    for text in ("{", "{}", "[]", '{"lorafit_proof": 1, "files": 3}'):
        (artifact / PROOF).write_text(text)
        with pytest.raises(UserError, match="is damaged"):
            open_artifact(artifact)
    (artifact / PROOF).unlink()
    with pytest.raises(UserError, match="nothing to hold it against"):
        verify_unchanged(open_artifact(artifact), None)
    with safe_open(artifact / "adapter_model.safetensors", "pt") as reader:
        assert reader.keys()
