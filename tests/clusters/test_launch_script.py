"""`lorafit launch-script`: what it refuses, and files that are whole by their own tools' rules."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from lorafit.clusters import TARGETS
from lorafit.clusters.job import Job
from tests.clusters.conftest import Write
from tests.conftest import REPOSITORY

WANTS = {"slurm": [], "torchrun": [], "skypilot": ["--gpu-type", "H100", "--volume", "runs"],
         "kubernetes": ["--image", "registry.example.org/lorafit:1"]}
EVERYTHING = {
    "slurm": ["--time", "4h", "--restarts", "2", "--memory", "1T", "--cpus-per-device", "8",
              "--gpu-type", "h100", "--partition", "gpu,long", "--account", "lab",
              "--setup", "module load cuda"],
    "torchrun": ["--restarts", "2", "--cpus-per-device", "8", "--rendezvous", "node1:29400",
                 "--setup", "module load cuda"],
    "skypilot": [*WANTS["skypilot"], "--restarts", "2", "--memory", "200G", "--image", "a/b:1",
                 "--cpus-per-device", "8", "--env", "HF_TOKEN", "--setup", "pip install ."],
    "kubernetes": [*WANTS["kubernetes"], "--restarts", "2", "--memory", "200G", "--time", "1d",
                   "--cpus-per-device", "8", "--env", "HF_TOKEN", "--gpu-type",
                   "NVIDIA-H100-80GB-HBM3", "--volume", "mine", "--setup", "pip install ."],
}


def refuse_by_bash(text: str) -> None:
    checked = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr


def shell_of(target: str, text: str) -> list[str]:
    """Every piece of shell in a file."""
    documents = [text] if TARGETS[target].is_script else list(yaml.safe_load_all(text))
    if target == "skypilot":
        return [documents[0]["setup"], documents[0]["run"]]
    if target == "kubernetes":
        pod = documents[-1]["spec"]["template"]["spec"]["containers"][0]
        assert pod["command"][:2] == ["bash", "-c"]
        return [pod["command"][2]]
    return documents


@pytest.mark.parametrize("nodes", ["1", "2"])
@pytest.mark.parametrize("target", TARGETS)
def test_every_file_is_read_by_what_it_is_for(write: Write, target: str, nodes: str) -> None:
    """Also with values that a shell or YAML would take for something else."""
    odd = ["--set", "data.system=It's \"$HOME\" `x` # {a: b}"]
    for options in (WANTS[target], EVERYTHING[target]):
        text = write(f"--{target}", "--nodes", nodes, "--num-processes", "4", *odd, *options)
        pieces = shell_of(target, text)
        for piece in pieces:
            refuse_by_bash(piece)
        command = next(line for line in pieces[-1].splitlines() if "--auto-resume" in line)
        arguments = command.split("lorafit train")[1]
        words = subprocess.run(["bash", "-c", f"printf '%s\\n' {arguments}"], capture_output=True,
                               text=True, check=True).stdout.splitlines()
        assert words[0] == "quickstart.yaml"
        assert words[2] == odd[1]


def test_slurm_is_told_what_was_asked(write: Write) -> None:
    text = write("--slurm", "--nodes", "2", "--num-processes", "8", *EVERYTHING["slurm"])
    told = {line.split()[1] for line in text.splitlines() if line.startswith("#SBATCH")}
    assert told == {
        "--job-name=quickstart", "--nodes=2", "--ntasks-per-node=8", "--gpus-per-node=h100:8",
        "--cpus-per-task=8", "--mem=1024G", "--partition=gpu,long", "--account=lab",
        "--time=0-04:00:00", "--signal=USR1@300", "--requeue", "--open-mode=append",
        "--output=%x-%j.log"}
    first_command = next(k for k, line in enumerate(text.splitlines())
                         if line and not line.startswith("#"))
    assert not any(line.startswith("#SBATCH") for line in text.splitlines()[first_command:])
    assert "STOP_AFTER_S=13800" in text  # ten minutes before the limit
    assert "--container-image=a/b:1" in write("--slurm", "--image", "a/b:1")
    assert "apptainer exec --nv" in write("--slurm", "--image", "/images/lorafit.sif")


def test_a_kubernetes_job_is_one_that_its_pods_find_each_other_in(write: Write) -> None:
    text = write("--kubernetes", "--nodes", "2", "--num-processes", "8", *EVERYTHING["kubernetes"])
    service, job = yaml.safe_load_all(text)
    assert (service["apiVersion"], service["kind"]) == ("v1", "Service")
    assert service["spec"]["clusterIP"] == "None"
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    spec: dict[str, Any] = job["spec"]
    assert spec["completions"] == spec["parallelism"] == 2
    assert spec["completionMode"] == "Indexed"
    assert spec["activeDeadlineSeconds"] == 86_400
    pod = spec["template"]["spec"]
    container = pod["containers"][0]
    # The API refuses a podFailurePolicy beside another restart policy, or of another container.
    assert pod["restartPolicy"] == "Never"
    codes = spec["podFailurePolicy"]["rules"][0]["onExitCodes"]
    assert codes["containerName"] == container["name"]
    assert codes["values"] == [2, 4, 5, 6]
    assert spec["podFailurePolicy"]["rules"][1]["onPodConditions"] == [
        {"type": "DisruptionTarget", "status": "True"}]
    # <job>-<index>.<subdomain> is a pod's name where a headless service of that name selects it.
    assert service["metadata"]["name"] == pod["subdomain"]
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert f"first={job['metadata']['name']}-0.{pod['subdomain']}" in container["command"][2]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 8, "cpu": 64, "memory": "200Gi"}
    volumes = {each["name"]: each for each in pod["volumes"]}
    assert {each["name"] for each in container["volumeMounts"]} == set(volumes)
    assert volumes["workspace"]["persistentVolumeClaim"] == {"claimName": "mine"}
    assert volumes["shared-memory"]["emptyDir"] == {"medium": "Memory"}
    token = next(each for each in container["env"] if each["name"] == "HF_TOKEN")
    assert token["valueFrom"]["secretKeyRef"] == {
        "name": "quickstart", "key": "HF_TOKEN", "optional": True}
    alone = list(yaml.safe_load_all(write("--kubernetes", *WANTS["kubernetes"])))
    assert [each["kind"] for each in alone] == ["Job"]


def test_a_skypilot_task_has_the_fields_of_its_specification(write: Write) -> None:
    text = write("--skypilot", "--nodes", "2", "--num-processes", "8", *EVERYTHING["skypilot"])
    task = yaml.safe_load(text)
    assert set(task) == {"name", "num_nodes", "workdir", "resources", "secrets", "volumes", "envs",
                         "setup", "run"}
    assert task["num_nodes"] == 2
    assert task["resources"] == {
        "accelerators": "H100:8", "cpus": "64+", "memory": "200+", "image_id": "docker:a/b:1",
        "job_recovery": {"max_restarts_on_errors": 2}}
    assert task["secrets"] == {"HF_TOKEN": None}
    assert task["volumes"] == {"/mnt/lorafit": "runs"}
    assert "output.dir=/mnt/lorafit/runs/quickstart" in task["run"]


@pytest.mark.parametrize(("options", "said"), [
    (["--slurm", "--torchrun"], ["only one target"]),
    ([], ["choose one target", "--slurm", "--kubernetes"]),
    (["--slurm", "--nodes", "4", "--num-processes", "8"], ["32 processes for a batch of 16"]),
    (["--slurm", "--", "--strategy=fsdp", "--nodes", "2"], ["-- --nodes", "before --"]),
    (["--slurm", "--", "--strategi", "fsdp"], ["--strategi"]),
    (["--slurm", "--", "other.yaml"], ["other.yaml"]),
    (["--slurm", "--set", "adapter.rnak=3"], ["did you mean adapter.rank?"]),
    (["--slurm", "--time", "fast"], ["--time", "no length of time"]),
    (["--slurm", "--time", "10s"], ["--time", "five minutes"]),
    (["--slurm", "--memory", "much"], ["--memory", "200G"]),
    (["--slurm", "--partition", "gpu\n#SBATCH --uid=0"], ["--partition", "characters"]),
    (["--slurm", "--volume", "x", "--rendezvous", "a:1"], ["--volume", "--rendezvous", "--slurm"]),
    (["--slurm", "--image", "a/b", "--setup", "true"], ["--setup with --image"]),
    (["--slurm", "--setup", "one\ntwo"], ["--setup", "each time"]),
    (["--slurm", "--env", "HF_TOKEN=abc"], ["--env HF_TOKEN", "the variable's name alone"]),
    (["--slurm", "--env", "a b"], ["no name of a variable"]),
    (["--slurm", "--setup", "export HF_TOKEN=hf_" + "a" * 34], ["a token of the hub", "--env"]),
    (["--torchrun", "--time", "1h", "--restarts", "1"], ["--time with --restarts", "--nodes"]),
    (["--torchrun", "--rendezvous", "a b"], ["no HOST:PORT"]),
    (["--torchrun", "--partition", "gpu"], ["means nothing to --torchrun"]),
    (["--skypilot"], ["--gpu-type H100"]),
    (["--skypilot", "--gpu-type", "H100", "--nodes", "2"], ["--volume", "sky volumes"]),
    (["--kubernetes"], ["--image", "needs an image"]),
    (["--kubernetes", "--image", "a/b", "--set", "output.dir=/data/run"], ["output.dir", "below"]),
])
def test_what_cannot_be_is_refused_with_the_option(write: Write, options: list[str],
                                                   said: list[str]) -> None:
    message = write(*options, code=2)
    for words in said:
        assert words in message, message


def test_no_secret_of_the_environment_reaches_a_file(
    write: Write, monkeypatch: pytest.MonkeyPatch,
) -> None:
    token = "hf_" + "b" * 34
    monkeypatch.setenv("HF_TOKEN", token)
    for target, options in EVERYTHING.items():
        text = write(f"--{target}", *options, "--env", "HF_TOKEN")
        assert token not in text
        assert "HF_TOKEN" in text
    assert token not in write("--slurm", "--setup", f"export TOKEN={token}", code=2)


def test_a_recipe_that_needs_the_hub_has_its_token_handed_through(write: Write) -> None:
    assert "HF_TOKEN" not in write("--slurm")
    assert "HF_TOKEN" in write("--slurm", "--set", "model.base=Qwen/Qwen3-0.6B")


def test_options_of_train_are_handed_on(write: Write) -> None:
    for target, options in WANTS.items():
        text = write(f"--{target}", *options, "--", "--strategy", "fsdp", "--cpu-offload")
        assert "quickstart.yaml --strategy fsdp --cpu-offload --auto-resume" in text


def test_a_file_is_written_once_and_runs(write: Write, folder: Path) -> None:
    said = write("--slurm", "-o", "job.sh")
    assert "sbatch job.sh" in said
    assert os.access(folder / "job.sh", os.X_OK)
    before = (folder / "job.sh").read_text()
    assert "already exists" in write("--slurm", "-o", "job.sh", code=2)
    assert (folder / "job.sh").read_text() == before
    write("--kubernetes", *WANTS["kubernetes"], "-o", "job.yaml")
    assert not os.access(folder / "job.yaml", os.X_OK)
    assert "lies in no directory" in write("--slurm", "-o", "none/job.sh", code=2)


def test_a_recipe_elsewhere_is_reached_where_all_see_it_and_refused_where_not(
    write: Write, folder: Path,
) -> None:
    elsewhere = str(REPOSITORY / "recipes" / "quickstart.yaml")
    assert f"lorafit train {elsewhere}" in write("--slurm", recipe=elsewhere)
    message = write("--kubernetes", *WANTS["kubernetes"], recipe=elsewhere, code=2)
    assert "is not below" in message
    assert "lorafit train quickstart.yaml" in write("--slurm",
                                                    recipe=str(folder / "quickstart.yaml"))


@pytest.mark.parametrize("name", ["Qwen3 8B (final).yaml", "7.yaml", "x" * 90 + ".yaml"])
def test_a_job_has_a_name_that_hosts_may_have(write: Write, folder: Path, name: str) -> None:
    """RFC 1123: letters, digits and dashes, 63 at most with what is added to it."""
    (folder / "quickstart.yaml").rename(folder / name)
    *_, job = yaml.safe_load_all(write("--kubernetes", *WANTS["kubernetes"], recipe=name))
    made = job["metadata"]["name"]
    assert made[0].isalpha()
    assert made.replace("-", "").isalnum()
    assert made == made.lower()
    assert len(made) < 50


def test_nothing_heavy_is_imported(folder: Path) -> None:
    code = ("import sys; sys.argv = ['lorafit', 'launch-script', 'quickstart.yaml', '--slurm']\n"
            "from lorafit.cli import main\nassert main._run() == 0\n"
            "print(*sys.modules.keys() & {'torch', 'transformers', 'accelerate'}, file=sys.stderr)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, check=True)
    assert done.stderr.strip() == ""


def test_every_target_takes_only_what_there_is() -> None:
    for target in TARGETS.values():
        assert target.takes <= set(Job.__dataclass_fields__)
