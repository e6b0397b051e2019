"""An artifact against its own proof: what can be told without the run."""

from lorafit.errors import UserError
from lorafit.export import proof as proofs
from lorafit.recipe.schema import Model
from lorafit.verify.artifact import Artifact
from lorafit.verify.figures import Compared, Figure, Verification


def verify_unchanged(artifact: Artifact, base: str | None) -> Verification:
    """Whether the files are as the proof has them, and the base the one that it names.

    `base` is where the base lies, if not where the proof says. UserError without a proof.
    """
    proof = artifact.proof
    if proof is None:
        raise UserError(f"has no {proofs.PROOF}, so there is nothing to hold it against",
                        str(artifact.path),
                        "compare it with the run that it is from: --against RUN")
    found = proofs.changes(artifact.path, proof)
    told = [Figure("files", f"{len(proof['files'])} as the proof has them" if not found else
                   "; ".join(found), "unchanged", not found), _base(artifact, base)]
    remarks = [f"the trainer's model was not computed: --against RUN measures anew what was "
               f"measured on {proof['date']}"]
    rows = proof["rows"]
    return Verification(f"{artifact.path}: {artifact.kind}",
                        f"none; the proof's figures are of {rows['what']}",
                        [Compared(f"{proofs.PROOF} ({proof['made_by']}, {proof['date']})", told,
                                  {"measured": proof["measured"]})],
                        remarks, "copy it again from where it was made, or export it again",
                        f"is what it was when it was checked, on {proof['date'][:10]}",
                        "is not what its proof says")


def _base(artifact: Artifact, base: str | None) -> Figure:
    assert artifact.proof is not None
    stored = artifact.proof["base"]
    place = base or (stored["name"] if stored["on_hub"] or stored["name"] == "tiny"
                     else artifact.base)
    if place is None:
        return Figure("base", f"{stored['name']}, a directory: not checked; name it with --base")
    model = Model.model_validate({"base": place, "revision": stored["revision"]
                                  if stored["on_hub"] and base is None else None})
    difference = proofs.other_base(stored, proofs.base_identity(model))
    if difference is None:
        return Figure("base", f"{stored['name']}: not on this machine, not checked")
    if not difference:
        return Figure("base", f"{stored['name']}, the same", "the same", True)
    return Figure("base", f"{stored['name']}: {difference} than the proof has it", "the same",
                  False)
