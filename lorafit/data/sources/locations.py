"""What a path may be, and the files it stands for."""

import glob
import os
import stat
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from lorafit.data.rows import MAX_EXAMPLES
from lorafit.data.sources.compression import COMPRESSIONS, endings
from lorafit.data.sources.kinds import READERS
from lorafit.errors import Problem, UserError

# Written by `datasets` beside its tables; descriptions, not rows.
_ABOUT_TABLES = {"dataset_info.json", "dataset_infos.json", "state.json"}
_SHOWN = 5  # kinds of files named in a message


@dataclass(frozen=True)
class Location:
    """A file, a pattern, a directory, or a data set with its split, configuration and revision."""

    path: str
    split: str | None = None
    subset: str | None = None
    revision: str | None = None

    @property
    def is_hub(self) -> bool:
        """Hub ids look like `name` or `owner/name`; what has a known ending or exists is a file."""
        looks_like_a_path = self.path.startswith((".", "/", "~")) or _is_pattern(self.path)
        if looks_like_a_path or _is_known(Path(self.path)) or os.path.exists(self.path):
            return False
        return self.path.count("/") <= 1

    @property
    def has_splits(self) -> bool:
        """Read by `datasets`: of the hub, or a directory laid out like one, of which a part is
        named."""
        named = self.split or self.subset
        return self.is_hub or (bool(named) and os.path.isdir(os.path.expanduser(self.path)))


def source_files(location: Location) -> list[Path]:
    """The files of a location in the order in which they are read; none where `has_splits`.

    UserError, naming the first ones, when there is none or some cannot be read.
    """
    path = Path(os.path.expanduser(location.path))
    if os.path.exists(path / "dataset_dict.json"):  # written by `datasets` around several tables
        splits = sorted(child.name for child in path.iterdir() if child.is_dir())
        raise UserError(f"holds several splits: {', '.join(splits)}", location.path,
                        "add the name of one to the path, and leave out `split`")
    if location.has_splits:
        return []
    if os.path.isdir(path):
        files = _usable(_below(path), location.path, "the directory has")
    elif _is_pattern(location.path) and not os.path.lexists(path):
        matched = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]
        files = _usable([file for file in matched if not file.is_dir()], location.path,
                        "the pattern matches")
    else:
        files = [path]
    problems = [problem for file in files if (problem := _problem_of(file))]
    if problems:
        raise UserError(problems=problems[:MAX_EXAMPLES])
    given = [name for name in ("split", "subset", "revision") if getattr(location, name)]
    if given:
        raise UserError(f"{' and '.join(given)} given for what is no hub data set", location.path,
                        f"leave out {' and '.join(given)}")
    return files


def _is_pattern(path: str) -> bool:
    return any(mark in path for mark in "*?[")


def _is_known(path: Path) -> bool:
    kind, compression = endings(path)
    return kind in READERS or bool(compression)


def _below(directory: Path) -> list[Path]:
    """Every file below a directory, sorted; without hidden ones."""
    found = []
    for parent, directories, names in os.walk(directory):
        directories[:] = [name for name in directories if not name.startswith(".")]
        about = _ABOUT_TABLES if "dataset_info.json" in names else set()
        found += [Path(parent, name) for name in names
                  if not name.startswith(".") and name not in about]
    return sorted(found)


def _usable(files: list[Path], path: str, holder: str) -> list[Path]:
    """The files with a known ending."""
    usable = [file for file in files if endings(file)[0] in READERS]
    if usable:
        return usable
    if not files:
        raise UserError(f"{holder} no file", path, "check the path; a pattern `**` goes into "
                        "directories below, and hidden files are left out")
    kinds = Counter("".join(endings(file)) or file.name for file in files).most_common()
    found = ", ".join(f"{count} {kind}" for kind, count in kinds[:_SHOWN])
    more = ", …" if len(kinds) > _SHOWN else ""
    raise UserError(f"{holder} no data file ({found}{more})", path, _known_endings())


def _problem_of(file: Path) -> Problem | None:
    """Why a file cannot be read, found without opening it: that would wait on a pipe."""
    try:
        mode = file.stat().st_mode
    except FileNotFoundError:
        if file.is_symlink():
            return Problem(f"a link to {os.readlink(file)}, which does not exist", str(file),
                           "mend or remove the link")
        return Problem("no such file", str(file),
                       "check data.train and data.eval; relative paths start from the working "
                       "directory or from the recipe's")
    except OSError as error:
        return unreadable(error, str(file))
    if not stat.S_ISREG(mode):
        return Problem("not a regular file", str(file),
                       "a pipe or a device can be read only once; write its content to a file")
    kind, compression = endings(file)
    if kind not in READERS:
        return Problem(f"unknown kind of data file {kind}{compression or ''}"
                       if kind or compression else "unknown kind of data file (no ending)",
                       str(file), _known_endings())
    if not os.access(file, os.R_OK):
        return unreadable(PermissionError(13, "Permission denied"), str(file))
    return None


def unreadable(error: OSError, path: str) -> Problem:
    return Problem(f"cannot be read: {error.strerror or error}", path,
                   "check the file and its permissions")


def _known_endings() -> str:
    return f"use one of {', '.join(READERS)}, also with {', '.join(COMPRESSIONS)}"
