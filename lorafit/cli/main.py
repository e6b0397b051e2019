"""`lorafit VERB …`: arguments in, exit code out."""

import os
import sys
import traceback
from types import TracebackType

import typer

from lorafit.cli import stdio
from lorafit.cli.app import app
from lorafit.data.examples import BadRow
from lorafit.errors import LorafitError, RankEnded, lost_a_rank, machine_trouble
from lorafit.last_words import leave
from lorafit.secrets import redacted

# Each puts its verbs on app; --help lists them in this order.
# isort: off
import lorafit.cli.commands.recipe
import lorafit.cli.commands.plan
import lorafit.cli.commands.cluster
import lorafit.cli.commands.run
import lorafit.cli.commands.report
import lorafit.cli.commands.evaluate
import lorafit.cli.commands.artifact
import lorafit.cli.commands.serve
import lorafit.cli.commands.cache
import lorafit.cli.commands.doctor  # noqa: F401
# isort: on


def main() -> None:
    """Run the command line; the process ends with one of errors.EXIT_CODES."""
    stdio.settle()
    sys.excepthook = _show_bug
    sys.exit(_run())


def _run() -> int:
    from lorafit.launch.rank import is_main_rank

    try:
        result = app(standalone_mode=False)
    except RankEnded as ended:
        # At once: libraries that are torn down may wait for the other ranks.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(ended.exit_code)
    except LorafitError as error:
        # Every rank finds the same mistake; one of them, or their launcher, says so.
        if not leave(redacted(str(error)), error.exit_code) and is_main_rank():
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
        if (message := machine_trouble(error)) is not None:
            if not leave(redacted(message), 3, is_echo=lost_a_rank(error)):
                print(f"error: {redacted(message)}", file=sys.stderr)
            return 3
        raise
    return result if isinstance(result, int) else 0


def _show_bug(kind: type[BaseException], error: BaseException,
              trace: TracebackType | None) -> None:
    """The traceback of a bug, without passwords and tokens that are in its messages."""
    sys.stderr.write(redacted("".join(traceback.format_exception(kind, error, trace))))
