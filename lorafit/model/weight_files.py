"""The file of each tensor of a model directory."""

from pathlib import Path

from lorafit.errors import UserError
from lorafit.json_files import read_object
from lorafit.model.intake import INDEX, weight_files
from lorafit.model.tensor_headers import check_tensor_file

SINGLE = "model.safetensors"
__all__ = ["INDEX", "SINGLE", "weight_shards"]


def weight_shards(folder: Path) -> dict[str, Path]:
    """The file of every tensor of a model directory, in the order of the files.

    UserError when there are none, or they are no safetensors in the directory itself.
    """
    try:
        files = weight_files(folder)
    except UserError as error:
        problem = error.problems[0]
        raise UserError(problem.what, problem.where,
                        "give a complete base with --base" if "no weights" in problem.what
                        else problem.remedy) from None
    if (folder / INDEX).exists():
        weight_map = read_object(folder / INDEX)["weight_map"]
        return {name: folder / file
                for name, file in sorted(weight_map.items(), key=lambda item: item[1])}
    return {name: file for file in files for name in check_tensor_file(file)
            if name != "__metadata__"}
