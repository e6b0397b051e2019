"""What a person sees while a run goes on: a live bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections import deque
from typing import Any, NamedTuple, Protocol

ROWS_SAID_EVERY_S = 5.0


class Load(NamedTuple):
    """What a step cost, over all ranks. seconds_data: waited for data, the longest of a rank.
    seconds_communication: of the main rank. memory_bytes: used at most so far, the highest of a
    rank, which is memory_rank.
    """

    ranks: int
    seconds_data: float
    seconds_communication: float
    memory_bytes: int
    memory_rank: int = 0

    def as_dict(self) -> dict[str, float]:
        """As it stands in metrics.jsonl."""
        communication = {} if self.ranks == 1 else {
            "seconds_communication": round(self.seconds_communication, 6)}
        return {"seconds_data": round(self.seconds_data, 6), **communication,
                "memory_bytes": self.memory_bytes}


class Display(Protocol):
    """Receives what happened; rank 0 alone has one that prints."""

    def rows_tokenised(self, source: str, rows: int) -> None: ...
    def start(self, step: int, total_steps: int) -> None: ...
    def step(self, step: int, loss: float, learning_rate: float, supervised_tokens: int,
             seconds: float, load: Load) -> None: ...
    def evaluation(self, step: int, loss: float, is_best: bool) -> None: ...
    def sample(self, prompt: str, answer: str) -> None: ...
    def say(self, text: str) -> None: ...
    def stop(self) -> None: ...


class Rate:
    """Supervised tokens per second, seconds per step and what they went into, over the last
    steps."""

    def __init__(self, window: int = 20) -> None:
        self._steps: deque[tuple[int, float, Load]] = deque(maxlen=window)

    def add(self, supervised_tokens: int, seconds: float, load: Load) -> None:
        self._steps.append((supervised_tokens, seconds, load))

    @property
    def tokens_per_s(self) -> float:
        return sum(tokens for tokens, _, _ in self._steps) / self._seconds

    @property
    def seconds_per_step(self) -> float:
        return self._seconds / max(1, len(self._steps))

    def __str__(self) -> str:
        """`2,378 tok/s (1,189 a device)  data 3%  communication 12%  memory 1.31 GiB (rank 1)`."""
        _, _, last = self._steps[-1]
        several = last.ranks > 1
        said = [f"{self.tokens_per_s:,.0f} tok/s"]
        if several:
            said[0] += f" ({self.tokens_per_s / last.ranks:,.0f} a device)"
        said.append(f"data {self._share([load.seconds_data for _, _, load in self._steps]):.0%}")
        if several:
            waited = [load.seconds_communication for _, _, load in self._steps]
            said.append(f"communication {self._share(waited):.0%}")
        said.append(f"memory {last.memory_bytes / 2**30:.2f} GiB"
                    + (f" (rank {last.memory_rank})" if several else ""))
        return "  ".join(said)

    def _share(self, seconds: list[float]) -> float:
        return min(1.0, sum(seconds) / self._seconds)

    @property
    def _seconds(self) -> float:
        return max(1e-9, sum(seconds for _, seconds, _ in self._steps))


class Silent:
    """For the other ranks."""

    def rows_tokenised(self, source: str, rows: int) -> None:
        pass

    def start(self, step: int, total_steps: int) -> None:
        pass

    def step(self, step: int, loss: float, learning_rate: float, supervised_tokens: int,
             seconds: float, load: Load) -> None:
        pass

    def evaluation(self, step: int, loss: float, is_best: bool) -> None:
        pass

    def sample(self, prompt: str, answer: str) -> None:
        pass

    def say(self, text: str) -> None:
        pass

    def stop(self) -> None:
        pass


class PlainLines:
    """A line for the first step, then about twenty over the run."""

    def __init__(self) -> None:
        self.rate = Rate()
        self.total_steps = 0
        self.said_s = time.monotonic()

    def rows_tokenised(self, source: str, rows: int) -> None:
        if time.monotonic() - self.said_s > ROWS_SAID_EVERY_S:
            self.say(f"{source}: {rows:,} rows tokenised")
            self.said_s = time.monotonic()

    def start(self, step: int, total_steps: int) -> None:
        self.total_steps = total_steps
        self.first = step

    def step(self, step: int, loss: float, learning_rate: float, supervised_tokens: int,
             seconds: float, load: Load) -> None:
        self.rate.add(supervised_tokens, seconds, load)
        every = max(1, self.total_steps // 20)
        if step % every and step not in (self.first + 1, self.total_steps):
            return
        left_s = self.rate.seconds_per_step * (self.total_steps - step)
        self.say(f"step {step}/{self.total_steps}  loss {loss:.4f}  lr {learning_rate:.2e}  "
                 f"{self.rate}  {duration(left_s)} left")

    def evaluation(self, step: int, loss: float, is_best: bool) -> None:
        self.say(f"step {step}/{self.total_steps}  held-out loss {loss:.4f}"
                 f"{'  (best so far)' if is_best else ''}")

    def sample(self, prompt: str, answer: str) -> None:
        self.say(f"  {_short(prompt)} → {_short(answer)}")

    def say(self, text: str) -> None:
        print(text, flush=True)

    def stop(self) -> None:
        pass


class LiveBar(PlainLines):
    """rich's progress bar, with what is said printed above it."""

    def __init__(self, console: Any) -> None:
        super().__init__()
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        self.console = console
        self.progress = Progress(
            BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[status]}"),
            TimeRemainingColumn(), console=console,
        )

    def start(self, step: int, total_steps: int) -> None:
        super().start(step, total_steps)
        self.task = self.progress.add_task("", total=total_steps, completed=step, status="")
        self.progress.start()

    def step(self, step: int, loss: float, learning_rate: float, supervised_tokens: int,
             seconds: float, load: Load) -> None:
        self.rate.add(supervised_tokens, seconds, load)
        status = f"loss {loss:.4f}  lr {learning_rate:.2e}  {self.rate}"
        self.progress.update(self.task, completed=step, status=status)

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False)

    def stop(self) -> None:
        self.progress.stop()


def make_display(is_main: bool) -> Display:
    """A live bar on a terminal, plain lines elsewhere, nothing on the other ranks."""
    if not is_main:
        return Silent()
    if sys.stdout.isatty():
        from rich.console import Console

        return LiveBar(Console())
    return PlainLines()


def duration(seconds: float) -> str:
    """Seconds as a person says them: 45 s, 3 min 20 s, 2 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _short(text: str, width: int = 76) -> str:
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"
