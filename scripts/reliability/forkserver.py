"""A process that has imported everything once and forks a child for each command.

The child is a process of its own, with its own session, that runs the command's main function and
can be killed like any other; only the seconds of importing are saved. The server itself never
computes anything, so that no thread pool has to survive a fork. It is the reaper of whatever its
children leave behind.

    python -m reliability.forkserver SOCKET-NUMBER

reads requests, a JSON object a line, and answers with what became of them.
"""

import ctypes
import json
import os
import select
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Any

PR_SET_CHILD_SUBREAPER = 36


def preload() -> None:
    from lorafit import libraries

    libraries.settle(needs_hub=False)
    import datasets  # noqa: F401
    import transformers.trainer
    from transformers.models.llama import modeling_llama  # noqa: F401

    import lorafit.cli.main
    import lorafit.cli.verbs.recipe
    import lorafit.launch.job
    import lorafit.train.run  # noqa: F401

    _ = transformers.TrainingArguments


class Server:
    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.running: dict[int, int] = {}  # request by process
        self.waker, waker = os.pipe()
        os.set_blocking(waker, False)
        os.set_blocking(self.waker, False)
        signal.set_wakeup_fd(waker)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)

    def serve(self) -> None:
        """Until the other side hangs up; what still runs then is killed."""
        rest = b""
        while True:
            ready, _, _ = select.select([self.connection, self.waker], [], [])
            if self.waker in ready:
                os.read(self.waker, 4096)
                self._reap()
            if self.connection in ready:
                received = self.connection.recv(1 << 16)
                if not received:
                    break
                *lines, rest = (rest + received).split(b"\n")
                for line in lines:
                    self._do(json.loads(line))
        for process in self.running:
            os.kill(process, signal.SIGKILL)

    def _do(self, request: dict[str, Any]) -> None:
        if request["do"] == "start":
            process = os.fork()
            if process == 0:
                _be_child(request, self.connection)
            self.running[process] = request["id"]
            self._answer(id=request["id"], process=process)
        else:
            if request["process"] in self.running:  # not reaped yet: the number is still its own
                os.kill(request["process"], request["signal"])
            self._answer(id=request["id"], signalled=True)

    def _reap(self) -> None:
        while True:
            try:
                process, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if process == 0:
                return
            if process in self.running:  # others are what a child left behind
                self._answer(id=self.running.pop(process),
                             code=os.waitstatus_to_exitcode(status), ended_s=time.monotonic())

    def _answer(self, **values: Any) -> None:
        self.connection.sendall(json.dumps(values).encode() + b"\n")


def _be_child(request: dict[str, Any], connection: socket.socket) -> None:
    """Run the command and end with its exit code; never returns."""
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        connection.close()
        os.setsid()
        os.chdir(request["folder"])
        os.environ.update(request["environment"])
        for number, name in ((1, request["output"]), (2, request["errors"])):
            file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.dup2(file, number)
            os.close(file)
        sys.argv = request["command"]
        code = _run(request)
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _run(request: dict[str, Any]) -> int:
    from reliability import faults, inject

    if request["fault"]:
        faults.arm(faults.Fault(**request["fault"]))
    if request["injection"]:
        inject.install(inject.Injection(**request["injection"]))
    program = Path(sys.argv[0]).name
    if program == "lorafit":
        from lorafit.cli.main import main
    else:
        from reliability.trainer import main
    if request["ranks"]:
        from reliability import ranks

        ranks.prepare(request["ranks"], main)
    main()
    return 0


if __name__ == "__main__":
    os.environ.pop("LD_PRELOAD", None)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    preload()
    with socket.socket(fileno=int(sys.argv[1])) as connection:
        Server(connection).serve()
