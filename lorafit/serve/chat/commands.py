"""What can be typed besides messages: lines that begin with a slash."""

from collections.abc import Callable
from pathlib import Path

from lorafit.errors import MachineError
from lorafit.serve.chat.session import SETTINGS, Session
from lorafit.serve.chat.speakers import Trouble

QUIT = ("/quit", "/exit", "/bye")
RETRY = "/retry"


def run(session: Session, line: str) -> str:
    """Do what a command says; what there is to tell. Trouble for one that cannot be done.

    `/quit` and `/retry` are the loop's own.
    """
    word, _, argument = line.partition(" ")
    if word not in _COMMANDS:
        raise Trouble(f"there is no command {word}; /help lists them. A message that begins with "
                      "a slash is typed with two")
    return _COMMANDS[word][0](session, argument.strip())


def _help(session: Session, argument: str) -> str:
    lines = [f"{form:<22} {what}" for _, form, what in _COMMANDS.values()]
    lines.insert(-1, f"{RETRY:<22} answer the last message again")
    return "\n".join([
        *lines, f"{'/quit':<22} leave (Ctrl-D too); Ctrl-C stops an answer",
        'A line that ends with \\ goes on in the next; """ begins and ends a text of several.',
        f"Settings: {', '.join(SETTINGS)}"])


def _with(session: Session, argument: str) -> str:
    session.choose(argument)
    return f"{' and '.join(session.who)} will answer"


def _add(session: Session, argument: str) -> str:
    if not argument:
        raise Trouble("name a run or an adapter: /add RUN, or /add NAME=RUN")
    name = session.speakers.add(argument)
    session.choose(name)
    return f"{name} is loaded and will answer"


def _models(session: Session, argument: str) -> str:
    base = session.speakers.base
    return "\n".join(
        f"{'*' if name in session.who else ' '} {name}{' (base)' if name == base else ''}"
        for name in session.speakers.names())


def _system(session: Session, argument: str) -> str:
    session.system = argument or None
    return "the system message is set" if argument else "there is no system message"


def _reset(session: Session, argument: str) -> str:
    session.turns.clear()
    return "everything that was said is forgotten"


def _undo(session: Session, argument: str) -> str:
    if not session.turns:
        raise Trouble("nothing was said yet")
    session.turns.pop()
    return "the last message and its answers are forgotten"


def _set(session: Session, argument: str) -> str:
    if argument:
        return session.set(argument)
    return "\n".join(f"{name:<20} {session.settings.get(name, 'default')!s:<8}  {what}"
                     for name, (_, what) in SETTINGS.items())


def _save(session: Session, argument: str) -> str:
    if not argument:
        raise Trouble("name a file: /save FILE")
    try:
        session.save(Path(argument))
    except (MachineError, OSError) as error:
        raise Trouble(str(error)) from None
    return f"{argument} written"


def _load(session: Session, argument: str) -> str:
    if not argument:
        raise Trouble("name a file: /load FILE")
    session.load(Path(argument))
    return f"{len(session.turns)} messages and their answers are back"


def _tokens(session: Session, argument: str) -> str:
    if not argument and not session.turns:
        raise Trouble("nothing was said yet; /tokens TEXT shows the prompt of a message")
    shown = []
    for name in session.who:
        messages = session.messages(name, argument or None)
        while messages[-1]["role"] == "assistant":  # the prompt of the last answer
            messages.pop()
        tokens = session.speakers.tokens(name, messages)
        shown.append(f"{name}: {len(tokens)} tokens")
        shown += [f"{i:>6} {token:>8}  {text!r}" for i, (token, text) in enumerate(tokens)]
    return "\n".join(shown)


_Command = Callable[[Session, str], str]
_COMMANDS: dict[str, tuple[_Command, str, str]] = {
    "/with": (_with, "/with WHO", "who answers: base, adapter, both, or names with commas"),
    "/use": (_with, "/use NAME", "the same: switch to another adapter"),
    "/add": (_add, "/add [NAME=]RUN", "load another adapter and switch to it"),
    "/models": (_models, "/models", "who can be asked; * marks who answers"),
    "/system": (_system, "/system TEXT", "set the system message; without a text remove it"),
    "/reset": (_reset, "/reset", "forget what was said; system message and settings stay"),
    "/undo": (_undo, "/undo", "forget the last message and its answers"),
    "/set": (_set, "/set NAME VALUE", "change a setting; `default` for the model's own; alone "
             "lists all"),
    "/tokens": (_tokens, "/tokens [TEXT]", "the prompt of the last message, or of this one, token "
                "by token"),
    "/save": (_save, "/save FILE", "write the conversation as rows that data.train reads"),
    "/load": (_load, "/load FILE", "go on with a conversation that was saved"),
    "/help": (_help, "/help", "this list"),
}
