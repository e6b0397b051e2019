"""The same LoRA work with lorafit and with other tools, each in an environment of its own.

    python scripts/bench_peers.py --data gsm8k.jsonl [--peers plain,trl,lorafit] [--repeats 3]

The work: a Llama of 110 million random weights in float32, rank 16 on all linear layers, AdamW,
8 chat rows of GSM8K in an optimizer step, the same rows once in every tool, trained on the
assistant's answer and its end-of-turn token alone. It is computed on the CPU.

The script builds the environments from the package index (some 2 GB each, kept under --work for the
next run), then lets the tools take turns: the first repeat of all, the second of all, and so on.
Each is measured from outside by the same probe. A tool runs at its default setting and, where its
name has an ending (-packed, -best), at the fastest that it has on a CPU: packing or padding-free
batches where it can, and no activations recomputed.

Tokens per second are of tokens that are not padding, from the third step on. A packed sequence
holds several rows; its length is chosen so that an optimizer step has about the tokens of 8 rows.
The table marks a tool that failed, and one whose work was not the same, with what differs.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from environment import BuildError, Environment, build, versions
from peers import axolotl, llamafactory, lorafit, plain, swift, torchtune, trl, unsloth
from peers.peer import Peer, Work
from peers.report import as_json, conclusions, rate, row, table
from peers.run import Run, run

HERE = Path(__file__).parent
PEERS = {peer.name: peer
         for module in (plain, trl, llamafactory, axolotl, swift, torchtune, unsloth, lorafit)
         for peer in module.PEERS}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True,
                        help="a JSONL file with the columns question and answer, such as GSM8K's")
    parser.add_argument("--work", type=Path, default=Path("peers-work"), metavar="DIR",
                        help="for environments, model, rows and logs (default: %(default)s)")
    parser.add_argument("--peers", default=",".join(PEERS), metavar="LIST",
                        help="which, in this order (default: all: %(default)s)")
    parser.add_argument("--steps", type=int, default=20,
                        help="optimizer steps of the padded tools (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=8,
                        help="rows in an optimizer step (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--size", choices=("full", "trial"), default="full",
                        help="trial: a tiny model, to see whether the tools run")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parser.add_argument("--threads", type=int, default=cores,
                        help="threads of each tool (default: all cores, %(default)s)")
    parser.add_argument("--limit-minutes", type=float, default=60,
                        help="longest a run may take (default: %(default)g)")
    parser.add_argument("--lorafit", type=Path, default=Path(sys.executable).parent / "lorafit",
                        metavar="PATH", help="the lorafit command, or a Python that has lorafit "
                                             "(default: the one beside this Python)")
    parser.add_argument("--torch", default="2.13.0",
                        help="version of torch in every environment (default: %(default)s)")
    parser.add_argument("--build-only", action="store_true",
                        help="build the environments and the work, and run nothing")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the figures here too")
    arguments = parser.parse_args()
    arguments.peers = arguments.peers.split(",")
    unknown = [name for name in arguments.peers if name not in PEERS]
    if unknown:
        parser.error(f"no such peer: {', '.join(unknown)}. There are {', '.join(PEERS)}.")
    if arguments.steps < 3:
        parser.error("--steps must be at least 3: the first two are not measured.")
    # Not resolved: a Python in a virtual environment is a link.
    arguments.work, arguments.lorafit = arguments.work.absolute(), arguments.lorafit.absolute()
    return arguments


def build_all(peers: list[Peer], torch: str, work_dir: Path) -> dict[str, str]:
    """Builds what the peers need. Returns the environments that could not be built, with why."""
    failures: dict[str, str] = {}
    # The plain loop's environment writes the model and the rows, whoever takes part.
    for environment in dict.fromkeys([plain.ENVIRONMENT,
                                      *(peer.environment for peer in peers)]):
        if environment is None:
            continue
        try:
            build(environment, torch, work_dir)
        except BuildError as error:
            failures[environment.name] = f"not built: {error}"
            print(f"{environment.name}: {failures[environment.name]}", flush=True)
    return failures


def write_work(arguments: argparse.Namespace) -> Work:
    folder = arguments.work / f"work-{arguments.size}-{arguments.batch}x{arguments.steps}"
    command = [str(plain.ENVIRONMENT.python(arguments.work)), "-m", "peers.work",
               "--data", str(arguments.data.absolute()), "--to", str(folder),
               "--batch", str(arguments.batch), "--steps", str(arguments.steps),
               "--size", arguments.size]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(HERE)},
                          capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"The model and the rows could not be written:\n{done.stderr}")
    return Work(folder=folder, **json.loads((folder / "work.json").read_text()))


def lorafit_command(path: Path) -> list[str]:
    return [str(path), "-m", "lorafit"] if path.name.startswith("python") else [str(path)]


def version_of(peer: Peer, lorafit: list[str], work_dir: Path) -> str:
    if peer.environment is not None:
        return versions(peer.environment, work_dir).get(peer.package, "?")
    try:
        said = subprocess.run([*lorafit, "--version"], capture_output=True, text=True).stdout
    except OSError:
        return "?"
    return said.split()[-1] if said.split() else "?"


def describe(run: Run) -> str:
    if run.failure is not None:
        return f"failed after {run.seconds:.0f} s: {run.failure}"
    return (f"{rate(run.steps):8.1f} tokens/s, {len(run.steps)} steps, {run.seconds:.0f} s in all, "
            f"loss {run.steps[0]['loss']:.4f} → {run.steps[-1]['loss']:.4f}")


def missing(peer: Peer, failures: dict[str, str], lorafit: list[str]) -> str | None:
    environment: Environment | None = peer.environment
    if environment is not None:
        return failures.get(environment.name)
    return None if Path(lorafit[0]).is_file() else f"there is no {lorafit[0]}"


def main() -> None:
    arguments = parse()
    peers = [PEERS[name] for name in arguments.peers]
    lorafit = lorafit_command(arguments.lorafit)
    arguments.work.mkdir(parents=True, exist_ok=True)
    failures = build_all(peers, arguments.torch, arguments.work)
    if plain.ENVIRONMENT.name in failures:
        sys.exit("Without the plain loop's environment there is no model and there are no rows.")
    work = write_work(arguments)
    print(f"{work.batch * work.steps} rows, {work.tokens} tokens, {work.supervised_tokens} of them "
          f"supervised, the longest row {work.longest_tokens}\n"
          f"{work.trained_parameters} trained weights; torch {arguments.torch}; "
          f"{arguments.threads} threads\n"
          f"{work.batch} rows have {work.tokens / work.steps:.0f} tokens on average", flush=True)
    for peer in peers:
        if peer.sequences is not None:
            print(f"{peer.name}: {peer.sequences} packed sequences of "
                  f"{work.pack_tokens(peer.sequences)} tokens in a step", flush=True)
    if arguments.build_only:
        return
    runs: dict[str, list[Run]] = {peer.name: [] for peer in peers}
    logs = arguments.work / "runs"
    session = logs / str(1 + max((int(path.name) for path in logs.glob("[0-9]*")), default=0))
    print(f"logs: {session}", flush=True)
    try:
        for repeat in range(arguments.repeats):
            for peer in peers:
                why = missing(peer, failures, lorafit)
                found = Run(0.0, [], why) if why else run(
                    peer, work, session / f"{peer.name}-{repeat + 1}", arguments.work, lorafit,
                    arguments.threads, 60 * arguments.limit_minutes)
                runs[peer.name].append(found)
                print(f"repeat {repeat + 1}  {peer.name:<20} {describe(found)}", flush=True)
    except KeyboardInterrupt:
        print("stopped; the table has what was run until then")
    first = next((found for found in runs.get("plain", []) if found.failure is None), None)
    rows = [row(peer, version_of(peer, lorafit, arguments.work), runs[peer.name], work, first,
                arguments.threads)
            for peer in peers]
    print("\n" + table(rows) + "\n\n" + "\n".join(conclusions(rows)))
    if arguments.json:
        arguments.json.write_text(json.dumps({
            "torch": arguments.torch, "threads": arguments.threads, "tokens": work.tokens,
            "supervised_tokens": work.supervised_tokens,
            "rows": as_json(rows)}, indent=1))


if __name__ == "__main__":
    main()
