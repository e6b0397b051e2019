"""`lorafit VERB …`: arguments in, exit code out."""

import sys
import traceback
from types import TracebackType

import typer

from lorafit.cli import stdio
from lorafit.cli.app import app
from lorafit.data.examples import BadRow
from lorafit.errors import LorafitError
from lorafit.last_words import leave
from lorafit.secrets import redacted

# Each puts its verbs on app; --help lists them in this order.
# isort: off
import lorafit.cli.commands.recipe
import lorafit.cli.commands.cluster
import lorafit.cli.commands.run
import lorafit.cli.commands.evaluate
import lorafit.cli.commands.artifact
import lorafit.cli.commands.serve
import lorafit.cli.commands.cache
import lorafit.cli.commands.doctor  # noqa: F401
# isort: on


# How gloo and NCCL say that a process at the other end has gone.
_LOST_RANK = ("Connection closed by peer", "Connection reset by peer", "connectFullMesh failed",
              "remote process exited", "ncclRemoteError", "ncclSystemError")
_LOST = ("another rank of this job is gone; what it said itself tells why\n    the last checkpoint "
         "is intact: go on with --resume")


def main() -> None:
    """Run the command line; the process ends with one of errors.EXIT_CODES."""
    stdio.settle()
    sys.excepthook = _show_bug
    sys.exit(_run())


def _run() -> int:
    from lorafit.launch.rank import is_main_rank

    try:
        result = app(standalone_mode=False)
    except LorafitError as error:
        # Every rank finds the same mistake; one of them, or their launcher, says so.
        speaks = is_main_rank() if error.is_told_here is None else error.is_told_here
        if not leave(redacted(str(error)), error.exit_code) and speaks:
            print(f"error: {redacted(str(error))}", file=sys.stderr)
        return error.exit_code
    except BadRow as bad:  # a template or a row that a verb met where there is but one
        print(f"error: {redacted(bad.what)}\n    {redacted(bad.remedy)}", file=sys.stderr)
        return 2
    except typer.Abort:
        return 130
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if hasattr(error, "exit_code") and hasattr(error, "show"):  # wrong usage of the command
            error.show()
            return int(error.exit_code)
        if (message := _machine_trouble(error)) is not None:
            if not leave(redacted(message), 3, is_echo=message == _LOST):
                print(f"error: {redacted(message)}", file=sys.stderr)
            return 3
        raise
    return result if isinstance(result, int) else 0


def _show_bug(kind: type[BaseException], error: BaseException,
              trace: TracebackType | None) -> None:
    """The traceback of a bug, without passwords and tokens that are in its messages."""
    sys.stderr.write(redacted("".join(traceback.format_exception(kind, error, trace))))


def _machine_trouble(error: Exception) -> str | None:
    """A message for what the machine refused, None for anything else."""
    if type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError):
        return ("out of memory\n    lower training.micro_batch_size, set "
                "training.activation_checkpointing=full, or quantise the base "
                "(model.quantization=nf4)")
    if isinstance(error, RuntimeError) and any(said in str(error) for said in _LOST_RANK):
        return _LOST
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{error.strerror or error}"
    return None
