"""Reads what is typed or piped, line by line, until the end."""

import contextlib
import sys
from collections.abc import Callable

from lorafit.serve.chat import commands
from lorafit.serve.chat.screen import Screen
from lorafit.serve.chat.session import Session, Turn
from lorafit.serve.chat.speakers import Trouble

_BLOCK = '"""'


def talk(session: Session) -> int:
    """Go on until the input ends or /quit. The exit code: 0, or 2 when something in a pipe could
    not be done, which nobody may have seen."""
    screen = Screen()
    is_typed = sys.stdin.isatty()
    if is_typed:
        with contextlib.suppress(ImportError):  # line editing and history, where Python has it
            import readline  # noqa: F401
        screen.tell(f"{' and '.join(session.who)} will answer; /help lists commands")
    else:
        sys.stdin.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]
    read = _typed if is_typed else _piped
    went_well = True
    while True:
        try:
            message = next_message(read)
            if message is None or message.strip() in commands.QUIT:
                break
            _take(session, screen, message)
        except Trouble as trouble:
            screen.complain(str(trouble))
            went_well = False
        except KeyboardInterrupt:
            if not is_typed:
                raise
            screen.tell("(Ctrl-D or /quit leaves)")
    return 0 if went_well or is_typed else 2


def next_message(read: Callable[[bool], str | None]) -> str | None:
    """What is said next: a line, or several. None at the end of the input.

    `read` gives a line, None at the end; it is told whether the line goes on another.
    """
    line = read(False)
    if line is None:
        return None
    if line.lstrip().startswith(_BLOCK):
        return _block(line.lstrip()[len(_BLOCK) :], read)
    lines = []
    while line is not None and line.endswith("\\"):
        lines.append(line[:-1])
        line = read(True)
    return "\n".join([*lines, *([] if line is None else [line])])


def _block(line: str, read: Callable[[bool], str | None]) -> str:
    lines = []
    while not line.rstrip().endswith(_BLOCK):
        lines.append(line)
        following = read(True)
        if following is None:
            return "\n".join(lines)
        line = following
    lines.append(line.rstrip()[: -len(_BLOCK)])
    return "\n".join(lines)


def _take(session: Session, screen: Screen, message: str) -> None:
    """Do what a message or a command says."""
    word = message.strip()
    if not word:
        return
    if word == commands.RETRY:
        if not session.turns:
            raise Trouble("nothing was said yet")
        _answer(session, screen, session.turns.pop().said)
    elif word.startswith("/") and not word.startswith("//"):
        screen.tell(commands.run(session, word))
    else:
        _answer(session, screen, message.replace("//", "/", 1) if word.startswith("//")
                else message)


def _answer(session: Session, screen: Screen, said: str) -> None:
    """Ask those who answer now. What came before an interruption is kept."""
    asked = [(name, session.messages(name, said)) for name in session.who]
    answers = [""] * len(asked)
    events = session.speakers.ask(asked, session.settings)
    try:
        screen.answers(session.who, events, answers)
    except KeyboardInterrupt:
        screen.tell("(stopped)")
        if not sys.stdin.isatty():
            raise
    finally:
        events.close()  # type: ignore[attr-defined]
    session.turns.append(Turn(said, dict(zip(session.who, answers, strict=True))))


def _typed(goes_on: bool) -> str | None:
    try:
        return input("... " if goes_on else ">>> ")
    except EOFError:
        print()
        return None


def _piped(goes_on: bool) -> str | None:
    line = sys.stdin.readline()
    return line.rstrip("\r\n") if line else None
