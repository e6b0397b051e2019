"""What srun tells a task, read without asking Slurm."""

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lorafit.errors import UserError
from lorafit.launch import slurm

SRUN = {"SLURM_JOB_ID": "4711", "SLURM_STEP_ID": "0", "SLURM_PROCID": "5", "SLURM_NTASKS": "16",
        "SLURM_STEP_NUM_TASKS": "16", "SLURM_LOCALID": "1", "SLURM_NODEID": "1",
        "SLURM_STEP_TASKS_PER_NODE": "4(x4)", "SLURM_STEP_NODELIST": "gpu[07-10]",
        "SLURM_JOB_NODELIST": "gpu[01-12]", "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.200"}


@pytest.mark.parametrize(("text", "names"), [
    ("node1", ["node1"]),
    ("node[01-03,7],login", ["node01", "node02", "node03", "node7", "login"]),
    ("a[1-2]b[8-10]", ["a1b8", "a1b9", "a1b10", "a2b8", "a2b9", "a2b10"]),
    ("rack-3.cluster.local", ["rack-3.cluster.local"]),
    ("n[099-101]", ["n099", "n100", "n101"]),
    ("n[5]-ib0", ["n5-ib0"]),
])
def test_lists_of_machines(text, names):
    assert slurm.hosts(text) == names


@pytest.mark.parametrize("text", [
    "", ",", "a,", "n[1-", "n[]", "n[3-1]", "n[a-b]", "n]1[", "n[1[2]]", "a b", "n[1-99999999999]",
    "n[0-999]m[0-999]"])
def test_what_is_no_list_is_refused(text):
    with pytest.raises(UserError, match="no list of machines"):
        slurm.hosts(text)


def short_form(prefix: str, width: int, numbers: list[int]) -> str:
    """Slurm's form of names with numbers, written anew: neighbours become ranges."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1 and len(str(number)) <= max(
                width, len(str(parts[-1][0]))):
            parts[-1].append(number)
        else:
            parts.append([number])
    return prefix + "[" + ",".join(
        f"{part[0]:0{width}}" + (f"-{part[-1]:0{width}}" if len(part) > 1 else "")
        for part in parts) + "]"


# How fast examples are made says something of the machine, nothing of the code.
at_any_speed = settings(suppress_health_check=[HealthCheck.too_slow])
groups = st.lists(st.tuples(
    st.text("abcxyz-", min_size=1, max_size=6), st.integers(1, 4),
    st.lists(st.integers(0, 1200), min_size=1, max_size=12, unique=True)), min_size=1, max_size=4)


@at_any_speed
@given(groups)
def test_a_list_reads_back_whatever_its_form(found: list[Any]):
    names = [f"{prefix}{number:0{width}}" for prefix, width, numbers in found for number in numbers]
    text = ",".join(short_form(prefix, width, numbers) for prefix, width, numbers in found)
    assert slurm.hosts(text) == names
    assert slurm.hosts(",".join(names)) == names


@at_any_speed
@given(st.text(max_size=40))
def test_any_text_is_a_list_or_refused(text: str):
    with suppress(UserError):
        assert slurm.hosts(text)


def test_tasks_per_node():
    assert slurm.tasks_per_node("2(x3),1") == [2, 2, 2, 1]
    assert slurm.tasks_per_node("8") == [8]
    assert slurm.tasks_per_node("") == []
    with pytest.raises(UserError):
        slurm.tasks_per_node("2x3")


def test_a_task_of_srun_in_torchs_words():
    assert slurm.is_task(SRUN)
    found = slurm.torch_environment(SRUN)
    port = found.pop("MASTER_PORT")
    assert found == {"RANK": "5", "WORLD_SIZE": "16", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4",
                     "MASTER_ADDR": "gpu07"}
    assert 1024 < int(port) < 32768
    other = slurm.torch_environment({**SRUN, "SLURM_PROCID": "6"})
    assert other["MASTER_PORT"] == port
    assert slurm.torch_environment({**SRUN, "SLURM_STEP_ID": "1"})["MASTER_PORT"] != port
    set_by_user = slurm.torch_environment({**SRUN, "MASTER_ADDR": "x", "MASTER_PORT": "1"})
    assert (set_by_user["MASTER_ADDR"], set_by_user["MASTER_PORT"]) == ("x", "1")


def test_uneven_machines():
    uneven = {**SRUN, "SLURM_STEP_TASKS_PER_NODE": "4,2"}
    assert slurm.torch_environment(uneven)["LOCAL_WORLD_SIZE"] == "2"
    old = {name: value for name, value in SRUN.items() if not name.startswith("SLURM_STEP_")}
    old |= {"SLURM_STEPID": "0", "SLURM_TASKS_PER_NODE": "8(x2)", "SLURM_JOB_NODELIST": "a[3-4]"}
    assert slurm.is_task(old)
    found = slurm.torch_environment(old)
    assert (found["LOCAL_WORLD_SIZE"], found["MASTER_ADDR"]) == ("8", "a3")


@pytest.mark.parametrize("change", [
    {"SLURM_STEP_ID": "4294967291"},  # a batch script
    {"SLURM_STEP_ID": "4294967290"},  # the shell that salloc opens
    {"SLURM_PTY_PORT": "40123"},  # the shell that srun --pty opens
    {"SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1"},
    {"SLURM_STEP_ID": None}, {"SLURM_PROCID": None}])
def test_what_is_no_task_of_srun(change):
    environment = {name: value for name, value in {**SRUN, **change}.items() if value is not None}
    assert not slurm.is_task(environment)


def test_values_that_slurm_does_not_write_are_refused():
    for name in ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_JOB_ID"):
        with pytest.raises(UserError, match=name):
            slurm.torch_environment({**SRUN, name: "x1"})
    with pytest.raises(UserError, match="rank 0 cannot be found"):
        slurm.torch_environment({name: value for name, value in SRUN.items() if "NODE" not in name})
