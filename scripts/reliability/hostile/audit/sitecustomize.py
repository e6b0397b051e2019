"""Writes down what this process and its children do: found by Python through PYTHONPATH.

AUDIT_LOG: the file that gets a line an event. AUDIT_ARTIFACT: code from this directory is noted.
"""

import os
import sys

_LOG, _ARTIFACT = os.environ.get("AUDIT_LOG"), os.environ.get("AUDIT_ARTIFACT", "\0")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Where the path of what changes stands among the arguments, and the directory it is relative to.
_CHANGES = {"os.mkdir": (0, 2), "os.remove": (0, 1), "os.rmdir": (0, 1), "os.truncate": (0, 9),
            "os.rename": (1, 3), "os.link": (1, 3), "os.symlink": (1, 2)}
_PROGRAMS = {"os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.startfile", "pty.spawn",
             "subprocess.Popen"}
_busy = False


def _path(value: object, folder: object = -1) -> str:
    if not isinstance(value, str | bytes | os.PathLike):
        return repr(value)
    if isinstance(folder, int) and folder >= 0:
        return os.path.join(os.readlink(f"/proc/self/fd/{folder}"), os.fsdecode(value))
    return os.path.abspath(os.fsdecode(value))


def _line(event: str, arguments: tuple[object, ...]) -> str | None:
    if event.startswith("socket."):
        return f"socket {event} {arguments[1:]!r:.100}"
    if event == "open" and isinstance(arguments[0], str | bytes):
        is_written = isinstance(arguments[2], int) and arguments[2] & _WRITES
        return f"write {_path(arguments[0])}" if is_written else None
    if event in _CHANGES:
        at, beside = _CHANGES[event]
        place = _path(arguments[at], arguments[beside] if beside < len(arguments) else -1)
        is_there = event == "os.mkdir" and os.path.isdir(place)
        return None if is_there else f"write {place}"
    if event in _PROGRAMS:
        return f"program {event} {arguments!r:.200}"
    if event in ("exec", "compile", "import"):
        source = {"exec": lambda: getattr(arguments[0], "co_filename", ""),
                  "compile": lambda: arguments[1], "import": lambda: arguments[1]}[event]()
        if isinstance(source, str) and source.startswith(_ARTIFACT):
            return f"code {event} {source}"
    return None


def _note(event: str, arguments: tuple[object, ...]) -> None:
    global _busy
    if _busy:
        return
    _busy = True
    try:
        if (line := _line(event, arguments)) is not None:
            file = os.open(_LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(file, (line.replace("\n", " ") + "\n").encode("utf-8", "replace"))
            os.close(file)
    finally:
        _busy = False


if _LOG:
    sys.addaudithook(_note)
