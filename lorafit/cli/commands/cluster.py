"""The verb that writes what a cluster reads."""

from pathlib import Path
from typing import Annotated

import typer

from lorafit.cli.app import Overrides, RecipePath, app
from lorafit.cli.durations import duration_s


@app.command("launch-script")
def launch_script(
    recipe_path: RecipePath,
    options: Annotated[list[str] | None, typer.Argument(
        metavar="[-- TRAIN OPTIONS]", show_default=False,
        help="What stands after -- is handed to lorafit train, such as --strategy fsdp.")] = None,
    overrides: Overrides = None,
    slurm: Annotated[bool, typer.Option(
        "--slurm", help="Write a batch script for sbatch.")] = False,
    torchrun: Annotated[bool, typer.Option(
        "--torchrun", help="Write a shell script that is run on every machine.")] = False,
    skypilot: Annotated[bool, typer.Option(
        "--skypilot", help="Write a task for SkyPilot.")] = False,
    kubernetes: Annotated[bool, typer.Option(
        "--kubernetes", help="Write an Indexed Job and its Service for kubectl.")] = False,
    nodes: Annotated[int, typer.Option(min=1, help="Machines.")] = 1,
    processes: Annotated[int, typer.Option(
        "--num-processes", min=1, help="Ranks on each machine, one a GPU.")] = 1,
    time: Annotated[str | None, typer.Option(
        metavar="TIME", show_default=False, help="Limit of the job: 45m, 4h, 1d12h. The run "
        "commits a checkpoint and ends before it; with Slurm the job then goes into the queue "
        "again.")] = None,
    restarts: Annotated[int, typer.Option(
        min=0, help="How often ranks that failed are started again in a job.")] = 0,
    partition: Annotated[str, typer.Option(
        help="Slurm: partition, or several with commas between.", show_default=False)] = "",
    account: Annotated[str, typer.Option(
        help="Slurm: account to charge.", show_default=False)] = "",
    gpu_type: Annotated[str, typer.Option(
        help="Kind of GPU, as the cluster calls it: h100, H100, NVIDIA-H100-80GB-HBM3.",
        show_default=False)] = "",
    cpus: Annotated[int | None, typer.Option(
        "--cpus-per-device", min=1, help="Cores for each rank.", show_default=False)] = None,
    memory: Annotated[str | None, typer.Option(
        metavar="SIZE", help="Memory of each machine: 200G, 1T.", show_default=False)] = None,
    image: Annotated[str, typer.Option(
        help="Container image with lorafit in it; with Slurm through pyxis, or apptainer for a "
        ".sif file.", show_default=False)] = "",
    volume: Annotated[str, typer.Option(
        help="Kubernetes: the claim, lorafit if left out; SkyPilot: the volume that runs and "
        "caches are kept in.", show_default=False)] = "",
    rendezvous: Annotated[str, typer.Option(
        metavar="HOST:PORT", help="torchrun: machine 0.", show_default=False)] = "",
    setup: Annotated[list[str] | None, typer.Option(
        metavar="LINE", help="Line of shell that comes first, such as 'module load cuda'. "
        "Repeatable. With Slurm and torchrun the virtual environment in use, if left out.",
        show_default=False)] = None,
    env: Annotated[list[str] | None, typer.Option(
        metavar="NAME", help="Hand this variable through, by name: values stand in no file. "
        "Repeatable. HF_TOKEN for a recipe that needs the hub, if left out.",
        show_default=False)] = None,
    output: Annotated[Path, typer.Option(
        "--output", "-o", metavar="FILE", help="File to write; it must not exist yet. - for the "
        "standard output.")] = Path("-"),
) -> None:
    """Write the file that starts a recipe on a cluster: Slurm, torchrun, SkyPilot or Kubernetes.

    The job goes on with its run wherever that stopped. It runs in the directory that this is called
    in. Nothing is submitted.
    """
    from lorafit.cli.verbs import cluster as verbs

    verbs.launch_script(
        recipe_path, overrides or [], options or [],
        {"slurm": slurm, "torchrun": torchrun, "skypilot": skypilot, "kubernetes": kubernetes},
        verbs.Asked(
            nodes=nodes, processes=processes, restarts=restarts,
            time_s=None if time is None else int(duration_s(time, "--time")),
            partition=partition, account=account, gpu_type=gpu_type, cpus=cpus, memory=memory,
            image=image, volume=volume, rendezvous=rendezvous, setup=setup, environment=env),
        output)
