"""What is asked for and makes no sense is refused before anything is loaded."""

import os
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import yaml

from lorafit.errors import UserError
from lorafit.launch.network import Place
from lorafit.launch.rank import Rank
from lorafit.launch.request import Options, check, check_rank, refuse_beside_launcher, settle

HERE = "127.0.0.1:29400"


@pytest.mark.parametrize(("options", "says"), [
    (Options(node_rank=1), "--node-rank: is for several machines"),
    (Options(rendezvous=HERE), "--rendezvous: is for several machines"),
    (Options(timeout_s=3.0), "--rendezvous-timeout: is for several machines"),
    (Options(nodes=2, rendezvous=HERE), "--node-rank: of 2 machines, which one is this"),
    (Options(nodes=2, node_rank=0), "--rendezvous: where do the machines meet"),
    (Options(nodes=2, node_rank=2, rendezvous=HERE), "numbered 0 to 1"),
    (Options(nodes=1, node_rank=1), "there is one machine"),
    (Options(nodes=2, node_rank=0, rendezvous="node1"), "'node1' is not HOST:PORT"),
    (Options(nodes=2, node_rank=0, rendezvous="node1:0"), "is not HOST:PORT"),
    (Options(nodes=2, node_rank=0, rendezvous="node1:65536"), "is not HOST:PORT"),
    (Options(nodes=2, node_rank=0, rendezvous="http://node1:1"), "is not HOST:PORT"),
    (Options(nodes=2, node_rank=0, rendezvous="fd00::1:80"), "is not HOST:PORT"),
    (Options(nodes=2, node_rank=0, rendezvous="no-such-host.invalid:29400"),
     "knows no host 'no-such-host.invalid'"),
])
def test_options_that_do_not_go_together(options, says):
    with pytest.raises(UserError, match=says) as refused:
        check(options)
    assert all(problem.remedy for problem in refused.value.problems)


def test_everything_is_said_at_once():
    with pytest.raises(UserError) as refused:
        check(Options(nodes=2))
    assert len(refused.value.problems) == 2


@pytest.mark.parametrize("options", [
    Options(), Options(processes=3), Options(restarts=2), Options(nodes=1, node_rank=0),
    Options(nodes=2, node_rank=1, rendezvous=HERE),
    Options(nodes=2, node_rank=1, rendezvous="[::1]:29400")])
def test_options_that_go_together(options):
    check(options)


def test_places():
    assert Place.parse("[fd00::1]:80", "") == Place("fd00::1", 80)
    assert str(Place("fd00::1", 80)) == "[fd00::1]:80"
    assert Place.parse("node-1.cluster_a.local:29400", "") == Place("node-1.cluster_a.local", 29400)


@pytest.mark.parametrize(("options", "gpus", "rows", "says"), [
    (Options(processes=9), 8, 64, "9 processes for 8 GPUs"),
    (Options(processes=5), 0, 4, "5 processes for a batch of 4"),
    (Options(processes=3, nodes=2, node_rank=0, rendezvous=HERE), 0, 4,
     "3 processes on each of 2 machines for a batch of 4"),
    (Options(nodes=2, node_rank=0, rendezvous=HERE), 8, 8, "8 processes on each of 2 machines"),
])
def test_more_ranks_than_there_is_work_for(options, gpus, rows, says):
    with pytest.raises(UserError, match=says):
        settle(options, gpus, rows)


def test_ranks_of_a_machine():
    assert settle(Options(), 8, 64).processes == 8
    assert settle(Options(), 0, 64).processes == 1
    assert settle(Options(processes=2), 8, 64).processes == 2


def test_what_a_launcher_has_decided():
    rank = Rank(0, 16, "Slurm's srun")
    refuse_beside_launcher(Options(), rank)
    for options in (Options(processes=2), Options(nodes=1), Options(restarts=1)):
        with pytest.raises(UserError, match="rank 0 of 16, started by Slurm's srun"):
            refuse_beside_launcher(options, rank)


def test_ranks_of_another_launcher():
    check_rank(Rank(0, 4, "torchrun"), 4, 4, 4)
    check_rank(Rank(0, 4, "Slurm's srun"), 1, 4, 4)  # which shows each task a GPU of its own
    with pytest.raises(UserError, match="4 processes on this machine for 2 GPUs"):
        check_rank(Rank(0, 4, "torchrun"), 2, 4, 64)
    with pytest.raises(UserError, match="16 processes for a batch of 8"):
        check_rank(Rank(0, 16, "torchrun"), 8, 8, 8)


def run(*arguments: str, **environment: str) -> tuple[int, str]:
    done = subprocess.run([sys.executable, "-m", "lorafit", "train", *arguments],
                          capture_output=True, text=True, timeout=120, check=False,
                          env={**os.environ, **environment})
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


@pytest.fixture
def recipe(make_recipe, tmp_path: Path) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(make_recipe("run").model_dump()))
    return str(path)


def test_the_command_refuses_with_exit_code_2(recipe):
    code, errors = run(recipe, "--nodes", "2", "--rendezvous", "node1")
    assert code == 2
    assert errors.count("error:") == 1
    assert "--node-rank" in errors
    code, errors = run(recipe, "--smoke", "--restarts", "1")
    assert code == 2
    assert "--smoke" in errors
    code, errors = run(recipe, "--nodes", "2", "--node-rank", "1", "--rendezvous", HERE,
                          "--rendezvous-timeout", "1min")
    assert code == 2
    assert "--rendezvous-timeout" in errors


def test_nobody_at_the_rendezvous(recipe, tmp_path):
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    code, errors = run(recipe, "--nodes", "2", "--node-rank", "1", "--rendezvous",
                          f"127.0.0.1:{port}", "--rendezvous-timeout", "1s")
    assert code == 2
    assert errors.count("error:") == 1
    assert f"machine 0 cannot be reached at 127.0.0.1:{port}" in errors
    assert not (tmp_path / "run").exists()


def test_a_port_in_use_and_by_whom(recipe):
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        code, errors = run(recipe, "--nodes", "2", "--node-rank", "0", "--rendezvous",
                              f"127.0.0.1:{taken.getsockname()[1]}")
    assert code == 2
    assert errors.count("error:") == 1
    assert "is in use" in errors


def test_ranks_that_cannot_be(recipe):
    for world in ("0", "two", "-1"):
        code, errors = run(recipe, RANK="0", WORLD_SIZE=world)
        assert code == 2
        assert errors.count("error:") == 1
        assert "RANK" in errors or "WORLD_SIZE" in errors
