"""What a tool is to the benchmark: its environment, and how one run of it is started."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from environment import Environment


@dataclass(frozen=True)
class Work:
    """The work that every tool does. Written by `peers.work` under `folder`.

    tokens, supervised_tokens: of all rows. longest_tokens: of a rendered row. trained_parameters:
    of the adapter. rows: a JSONL file of chat rows.
    """

    folder: Path
    batch: int
    steps: int
    vocabulary: int
    pad_id: int
    tokens: int
    supervised_tokens: int
    longest_tokens: int
    trained_parameters: int
    rank: int = 16
    alpha: int = 32
    learning_rate: float = 1e-4
    max_grad_norm: float = 1.0
    seed: int = 0

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def rows(self) -> Path:
        return self.folder / "rows.jsonl"

    @property
    def targets(self) -> list[str]:
        return ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

    def pack_tokens(self, sequences: int) -> int:
        """Length of a packed sequence, where `sequences` of them make an optimizer step.

        A step then holds about as many tokens as `batch` rows.
        """
        # A multiple of 8, to which some collators would pad it; no row may have to be cut.
        wanted = max(self.tokens / self.steps / sequences, self.longest_tokens)
        return 8 * math.ceil(wanted / 8)


@dataclass(frozen=True)
class Start:
    """A command. arguments: after the environment's Python, or a whole command if `own` is set."""

    arguments: list[str]
    own: bool = False
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Peer:
    """A tool at one of its settings.

    name: on the command line. setting: "default" or "best". note: what the setting is, in a few
    words. package: whose version is shown. environment: None if the caller brings one. sequences:
    how many packed sequences make an optimizer step, where it is not `batch` rows. ordered:
    whether the rows keep their order. write: puts the configuration of a run into a folder and
    says how to start it. losses, supervised: read the mean loss of each step, and the number of
    supervised tokens, from the folder of a run, where the probe cannot see them.
    """

    name: str
    tool: str
    package: str
    setting: str
    note: str
    environment: Environment | None
    write: Callable[[Work, Path], Start]
    sequences: int | None = None
    ordered: bool = True
    losses: Callable[[Path], list[float]] | None = None
    supervised: Callable[[Path], int] | None = None

    @property
    def packed(self) -> bool:
        return self.sequences is not None
