"""How many ranks are asked for, and where."""

from dataclasses import dataclass

from lorafit.errors import Problem, UserError
from lorafit.launch.network import Place
from lorafit.launch.rank import Rank

TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Options:
    """The options of the command line as they were given; None and 0 for those that were not.

    processes: ranks on this machine. node_rank: which of the machines this is. rendezvous: where
    the first one can be reached. timeout_s: how long the machines wait for each other. restarts:
    how often at most ranks are started again.
    """

    processes: int | None = None
    nodes: int | None = None
    node_rank: int | None = None
    rendezvous: str | None = None
    timeout_s: float | None = None
    restarts: int = 0

    def given(self) -> list[str]:
        """The options that were used, by name."""
        values = {"--num-processes": self.processes, "--nodes": self.nodes,
                  "--node-rank": self.node_rank, "--rendezvous": self.rendezvous,
                  "--rendezvous-timeout": self.timeout_s, "--restarts": self.restarts or None}
        return [name for name, value in values.items() if value is not None]


@dataclass(frozen=True)
class Request:
    """What a launcher has to start: `processes` ranks here, as machine `node` of `nodes`.

    place: where launchers meet; None on a single machine. timeout_s: how long they wait for each
    other. patience_s: after which a line says what is waited for.
    """

    processes: int
    nodes: int = 1
    node: int = 0
    place: Place | None = None
    timeout_s: float = TIMEOUT_S
    restarts: int = 0
    patience_s: float = 5.0


def refuse_beside_launcher(options: Options, rank: Rank) -> None:
    """UserError for options that a launcher has decided already."""
    if given := options.given():
        raise UserError(f"this is {rank}, which has decided that", ", ".join(given),
                        "leave it out, or start lorafit train without the launcher")


def check(options: Options) -> None:
    """UserError with everything that makes no sense together, or leads nowhere."""
    problems = list(_problems(options))
    if problems:
        raise UserError(problems=problems)
    if options.rendezvous is not None:
        Place.parse(options.rendezvous, "--rendezvous").resolve("--rendezvous")


def _problems(options: Options) -> list[Problem]:
    several = {"--node-rank": options.node_rank, "--rendezvous": options.rendezvous,
               "--rendezvous-timeout": options.timeout_s}
    if options.nodes is None:
        return [Problem("is for several machines, and --nodes is not given", name,
                        f"give --nodes N too, or leave {name} out")
                for name, value in several.items() if value is not None]
    if options.nodes == 1:
        return [] if not options.node_rank else [
            Problem("there is one machine, number 0", f"--node-rank {options.node_rank}",
                    "give --nodes as many as there are machines")]
    problems = []
    if options.node_rank is None:
        problems.append(Problem(
            f"of {options.nodes} machines, which one is this?", "--node-rank",
            f"give 0 on the first one, then 1 to {options.nodes - 1}"))
    elif options.node_rank >= options.nodes:
        problems.append(Problem(
            f"{options.nodes} machines are numbered 0 to {options.nodes - 1}",
            f"--node-rank {options.node_rank}", "start at 0, or raise --nodes"))
    if options.rendezvous is None:
        problems.append(Problem(
            "where do the machines meet?", "--rendezvous",
            "give the name or address of the first one and a free port of it, such as "
            "node1:29400, the same on every machine"))
    return problems


def settle(options: Options, gpus: int, batch_size: int, sharing: int = 1) -> Request:
    """The request that options stand for on a machine with so many GPUs.

    sharing: how many ranks share the tokens of each row. UserError for more ranks than there are
    devices, or groups of them than rows in a batch.
    """
    nodes = options.nodes or 1
    processes = options.processes or gpus or sharing
    if 0 < gpus < processes:
        raise UserError(f"{processes} processes for {gpus} GPUs", "--num-processes",
                        f"use at most {gpus}")
    if processes * nodes // sharing > batch_size:
        several = f" on each of {nodes} machines" if nodes > 1 else ""
        raise UserError(f"{processes} processes{several} for a batch of {batch_size}",
                        "training.batch_size", "raise it, or use --num-processes")
    place = None
    if nodes > 1:
        assert options.rendezvous is not None
        place = Place.parse(options.rendezvous, "--rendezvous")
    return Request(processes, nodes, options.node_rank or 0, place,
                   options.timeout_s or TIMEOUT_S, options.restarts)


def check_rank(rank: Rank, gpus: int, local_world: int, batch_size: int, sharing: int = 1) -> None:
    """What `settle` refuses, for a rank that another launcher started.

    Slurm may show each task a GPU of its own, so that there nothing can be told from their number.
    """
    if 0 < gpus < local_world and "Slurm" not in rank.by:
        raise UserError(f"{local_world} processes on this machine for {gpus} GPUs",
                        "LOCAL_WORLD_SIZE", f"start at most {gpus}")
    if rank.world // sharing > batch_size:
        raise UserError(f"{rank.world} processes for a batch of {batch_size}",
                        "training.batch_size", "raise it, or start fewer processes")
