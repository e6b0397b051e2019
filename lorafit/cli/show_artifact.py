"""What `verify` and `push` print."""

from pathlib import Path
from typing import Any

from lorafit.cli.show import console

_VERDICTS = {True: "ok", False: "DIFFERS", None: "-"}


def verification(found: Any) -> None:
    """A line for each figure with its limit, and the verdict."""
    _line("artifact", found.subject)
    _line("rows", found.rows)
    for compared in found.compared:
        console.print()
        _line("against", compared.against)
        for figure in compared.figures:
            limit = f"limit: {figure.limit}" if figure.limit else "no limit"
            console.print(f"  {_VERDICTS[figure.passed]:<8} {figure.name:<40} {figure.value} "
                          f"[{limit}]", markup=False)
    console.print()
    for remark in found.remarks:
        _line("note", remark)
    _line("verdict", found.agrees if found.passed else "DIFFERS")


def kept(artifact: Path) -> None:
    _line("kept", f"{artifact}/lorafit_proof.json")


def plan(planned: Any, where: str, visibility: str) -> None:
    """Files with sizes, where to, and who will see them."""
    _line("artifact", f"{planned.artifact}: {len(planned.files)} files, "
          f"{_size(planned.total_bytes)}; hashes are as the proof has them")
    for file in planned.files:
        console.print(f"{'':<9} {_size(file.size_bytes):>12}  {file.name}", markup=False)
    _line("to", f"{where} ({visibility})")
    for remark in planned.remarks:
        _line("note", remark)


def pushed(where: str) -> None:
    _line("written", where)


def nothing_uploaded() -> None:
    _line("", "dry run: nothing was uploaded")


def _line(name: str, text: str) -> None:
    console.print(f"{name:<9} {text}", markup=False)


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:,.2f} MB" if size_bytes >= 1e5 else f"{size_bytes:,} B"
