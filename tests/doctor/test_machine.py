"""`lorafit doctor`: what is broken for real is found, in whatever way it breaks."""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorafit.doctor import disk, environment, machine, versions
from lorafit.doctor.finding import Finding, Section, Verdict
from lorafit.doctor.isolated import Probe, isolated
from lorafit.doctor.probes import PROBES, RANKS

REPOSITORY = Path(__file__).parent.parent.parent
Problems = Callable[[Any], dict[str, str]]

# Put on the path, notes every socket and every name that is looked up, in each process.
AUDIT = """\
import os, sys
def hook(event, arguments):
    if event in ("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.sendto",
                 "socket.__new__"):
        with open({log!r}, "a") as log:
            log.write(event + " " + " ".join(sys.argv)[-200:] + "\\n")
sys.addaudithook(hook)
"""


def doctor(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A real `lorafit doctor` in its own working directory, with empty caches beside it."""
    for name in ("work", "tmp", "cache"):
        (folder / name).mkdir(exist_ok=True)
    path = os.pathsep.join(filter(None, (environment.pop("PYTHONPATH", ""), str(REPOSITORY))))
    return subprocess.run(
        [sys.executable, "-m", "lorafit", "doctor", *arguments], capture_output=True, text=True,
        cwd=folder / "work", timeout=240, env={
            **os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(folder / "tmp"),
            "LORAFIT_CACHE": str(folder / "cache"), "HF_HOME": str(folder / "hub"),
            **environment, "PYTHONPATH": path})


def package(folder: Path, name: str, code: str) -> None:
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(code)


def by_name(findings: Any) -> dict[str, Finding]:
    return {each.name: each for each in findings}


# ---- the whole, on this machine


def test_this_machine_is_in_order_nothing_stays_and_no_socket_is_opened(tmp_path: Path) -> None:
    (tmp_path / "audit").mkdir()
    (tmp_path / "audit" / "sitecustomize.py").write_text(
        AUDIT.format(log=str(tmp_path / "sockets")))
    started = time.perf_counter()
    done = doctor(tmp_path, "--json", "-", PYTHONPATH=str(tmp_path / "audit"),
                  HF_TOKEN="hf_secret", https_proxy="http://me:hidden@proxy:3128")
    seconds = time.perf_counter() - started
    assert done.returncode == 0, done.stderr + done.stdout
    found = json.loads(done.stdout)
    tried = {each["name"] for each in found["findings"] if each["verdict"] == "ok"}
    assert {"torch", "LoRA on cpu", "SDPA on cpu", "packed attention on cpu", "fast path on cpu",
            "step on cpu", "memory", "current directory", "lorafit's cache"} <= tried
    assert not (tmp_path / "sockets").exists(), (tmp_path / "sockets").read_text()
    left = [path for name in ("work", "tmp", "cache") for path in (tmp_path / name).rglob("*")]
    assert left == []
    assert not (tmp_path / "hub").exists()
    assert "hf_secret" not in done.stdout
    assert "hidden" not in done.stdout
    assert seconds < 60, "on a busy machine; 7 s on a quiet one"


def test_broken_libraries_are_lines_and_the_rest_is_still_tried(tmp_path: Path) -> None:
    package(tmp_path / "broken", "torch", "raise ImportError('libtorch_cpu.so: too short')")
    done = doctor(tmp_path, PYTHONPATH=str(tmp_path / "broken"), COLUMNS="80")
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    out = " ".join(done.stdout.split())
    assert "problem torch ImportError: libtorch_cpu.so: too short" in out
    assert "not tried: torch does not work" in out
    assert f"{tmp_path}/broken/torch is taken in place of the installed torch" in out
    assert "ok current directory" in out
    assert "error: not in order: torch" in done.stderr
    width = max(len(line) for line in done.stdout.splitlines() if str(tmp_path) not in line)
    assert width <= 80


def test_it_speaks_where_the_command_line_cannot_start(tmp_path: Path) -> None:
    for name in ("typer", "pydantic", "torch", "rich", "yaml"):
        package(tmp_path, name, f"raise ImportError('no {name} today')")
    done = subprocess.run(
        [sys.executable, "-m", "lorafit.doctor"], capture_output=True, text=True, cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{REPOSITORY}"}, timeout=120)
    assert done.returncode == 3, done.stderr
    assert "problem  torch: torch: ImportError: no torch today" in done.stdout
    assert "ok       disk: current directory" in done.stdout


# ---- probes that crash, hang, print


def test_a_probe_that_crashes_hangs_or_ends_is_a_line_and_the_next_one_is_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(tmp_path)

    def make(name: str, code: str, **options: Any) -> Probe:
        (tmp_path / f"probe_{name}.py").write_text(f"def run(section):\n    {code}\n")
        return Probe(name, "tried", f"probe_{name}:run", **options)

    fine = "yield section.ok({0!r}, 'works')"
    probes = [
        make("first", fine.format("first")),
        make("crash", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV); yield"),
        make("second", fine.format("second"), needs=("first",)),
        make("hang", "import time; time.sleep(600); yield", limit_s=1.0, remedy="wait"),
        make("leave", "import os; print('out of cards', flush=True); os._exit(7); yield"),
        make("raise_", "raise ValueError('first line\\nsecond line'); yield"),
        make("noise", "print('x' * 100_000); import sys; print('y', file=sys.stderr); "
             + fine.format("noise")),
        make("half", "yield section.ok('half', 'a'); raise KeyError('b')"),
        make("absent", "from lorafit.doctor.finding import Absent; "
             "yield section.note('absent', 'not here'); raise Absent"),
        make("on_absent", fine.format("on_absent"), needs=("absent",)),
        make("on_crash", fine.format("on_crash"), needs=("crash", "first")),
        make("exits", "import sys; sys.exit('bye'); yield"),
        make("last", fine.format("last")),
    ]
    started = time.perf_counter()
    found = [(each.name, each.verdict.value, each.text) for each in isolated(probes)]
    assert found == [
        ("first", "ok", "works"),
        ("crash", "problem", "the process died of SIGSEGV"),
        ("second", "ok", "works"),
        ("hang", "problem", "no answer in 1 s"),
        ("leave", "problem", "the process ended with code 7: out of cards"),
        ("raise_", "problem", "ValueError: first line"),
        ("noise", "ok", "works"),
        ("half", "ok", "a"), ("half", "problem", "KeyError: 'b'"),
        ("absent", "note", "not here"),
        ("on_crash", "note", "not tried: crash does not work"),
        ("exits", "problem", "the process ended with code 1: bye"),
        ("last", "ok", "works"),
    ]
    assert time.perf_counter() - started < 30


def test_a_broken_bitsandbytes_is_a_line_and_training_is_still_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    package(tmp_path, "bitsandbytes", "import os, signal; os.kill(os.getpid(), signal.SIGABRT)")
    monkeypatch.syspath_prepend(tmp_path)
    tried = [each for each in PROBES if each.name in ("torch", "bitsandbytes", "nf4", "devices")]
    found = by_name(isolated(tried[:1] + tried[2:] + tried[1:2]))
    assert found["bitsandbytes"].verdict is Verdict.PROBLEM
    assert "SIGABRT" in found["bitsandbytes"].text
    assert "pip install" in found["bitsandbytes"].remedy
    assert found["nf4"].text == "not tried: bitsandbytes does not work"
    assert found["cpu"].verdict is Verdict.OK


@pytest.mark.long
def test_two_processes_meet() -> None:
    found = by_name(isolated([PROBES[0], RANKS]))
    assert found["gloo"].verdict is Verdict.OK, found


# ---- results that are wrong


def test_kernels_that_compute_something_else_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from lorafit.doctor.probes import attention, kernels, lora_layer

    (right,) = kernels.fast_path(Section("kernels"))
    assert right.verdict is Verdict.OK
    whole = kernels.rms_norm
    monkeypatch.setattr(kernels, "rms_norm", lambda x, w, e: whole(x, w * 1.05, e))
    (wrong,) = kernels.fast_path(Section("kernels"))
    assert wrong.verdict is Verdict.PROBLEM
    assert wrong.text.count("norm in") == 3
    for module, name, examine in (
            (kernels, "packed_attention", kernels.packed),
            (attention.F, "scaled_dot_product_attention", attention.scaled_dot_product),
            (lora_layer.F, "linear", lora_layer.on_each_device)):
        plain = getattr(module, name)

        def off(x: Any, *others: Any, plain: Any = plain, **options: Any) -> Any:
            """A twentieth too much in single precision and below; the reference is not touched."""
            out = plain(x, *others, **options)
            return out if out.dtype.itemsize == 8 else out * 1.05

        with monkeypatch.context() as patch:
            patch.setattr(module, name, off)
            (found,) = examine(Section("kernels"))
            assert found.verdict is Verdict.PROBLEM, name
            assert "from" in found.text

            def fails(*_: Any, **__: Any) -> Any:
                raise RuntimeError("CUDA error: no kernel image is available\nand more")

            patch.setattr(module, name, fails)
            if module is not lora_layer.F:
                (found,) = examine(Section("kernels"))
                assert "no kernel image is available" in found.text


def test_quantisation_that_is_off_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("bitsandbytes")
    from lorafit.doctor.probes import quantisation

    for examine in (quantisation.four_bits, quantisation.eight_bits, quantisation.optimizer):
        (found,) = examine(Section("q"))
        assert found.verdict is Verdict.OK, found
    whole = quantisation.nf4
    monkeypatch.setattr(quantisation, "nf4", lambda w: whole(w) * 1.001)
    (found,) = quantisation.four_bits(Section("q"))
    assert found.verdict is Verdict.PROBLEM


# ---- versions, by real metadata on the path


def distribution(folder: Path, name: str, version: str, *requires: str) -> None:
    place = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    place.mkdir(parents=True)
    (place / "METADATA").write_text("".join(
        [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
         *(f"Requires-Dist: {each}\n" for each in requires)]))


def test_versions_here_are_supported_and_tested(problems: Problems) -> None:
    found = list(versions.examine_versions())
    assert problems(found) == {}
    assert by_name(found)["torch"].verdict is Verdict.OK


@pytest.mark.parametrize(("name", "version", "verdict", "said"), [
    ("peft", "0.18.0", "problem", "0.18.0 is not supported: lorafit needs >=0.20"),
    ("peft", "0.99.0", "warning", "0.99.0 is newer than what was tested"),
    ("peft", "0.21.9", "ok", "0.21.9"),
    ("transformers", "6.1.0", "warning", "6.1.0 is newer than what was tested"),
    ("transformers", "not-a-version", "warning", "no version that can be compared"),
    ("lm-eval", "0.3.0", "problem", "0.3.0 is not supported"),
    ("bitsandbytes", "0.49.0", "problem", "8-bit AdamW does not run on a CPU"),
    ("torch", "2.9.1+cu128", "problem", "fused experts have no CPU kernel"),
])
def test_a_version_outside_what_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, version: str, verdict: str,
    said: str,
) -> None:
    distribution(tmp_path, name, version)
    monkeypatch.syspath_prepend(tmp_path)
    found = [each for each in versions.examine_versions()
             if said in each.text and each.verdict == verdict]
    assert len(found) == 1
    assert verdict == "ok" or "pip install" in found[0].remedy
    if name != "lm-eval":  # which is not installed here a second time
        assert any("is installed 2 times" in each.text and str(tmp_path) in each.text
                   for each in versions.examine_versions() if each.name == name)


def test_packages_that_do_not_go_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    distribution(tmp_path, "accelerate", "1.15.0", "numpy<1.0", "torch>=2.0")
    distribution(tmp_path, "somebody-elses", "1.0", "torch==1.13", "left-pad>=9",
                 'torch==1.0; sys_platform == "other"', 'torch==1.1; extra == "x"')
    monkeypatch.syspath_prepend(tmp_path)
    found = list(versions.examine_versions())
    problem = [each for each in found if each.name == "accelerate"
               and each.verdict is Verdict.PROBLEM]
    assert len(problem) == 1
    assert problem[0].text.startswith("needs numpy<1.0, and ")
    others = [each for each in found if each.name == "somebody-elses"]
    assert [each.verdict for each in others] == [Verdict.WARNING]
    assert others[0].text.startswith("needs torch==1.13, and ")


def test_what_is_missing_is_a_line_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    distribution(tmp_path, "lorafit", "9.9", "surely-not-there>=1.0", "packaging")
    monkeypatch.syspath_prepend(tmp_path)
    found = by_name(versions.examine_versions())
    assert found["surely-not-there"].verdict is Verdict.PROBLEM
    assert found["surely-not-there"].remedy == "pip install 'surely-not-there>=1.0'"
    assert "9.9 is what is installed" in found["lorafit"].text


# ---- environment variables


@pytest.mark.parametrize(("values", "verdict", "said"), [
    ({"OMP_NUM_THREADS": "1000"}, "warning", "more threads than"),
    ({"OMP_NUM_THREADS": "1"}, "note", "threads of a computation"),
    ({"OMP_NUM_THREADS": "many"}, "warning", "no number of threads"),
    ({"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "2"}, "warning", "two pools"),
    ({"RANK": "1", "WORLD_SIZE": "8"}, "problem", "one rank of 8"),
    ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, "note", "not taken from here"),
    ({"ACCELERATE_USE_DEEPSPEED": "true"}, "problem", "is refused by lorafit train"),
    ({"ACCELERATE_USE_FSDP": "true"}, "note", "taken as --strategy fsdp"),
    ({"ACCELERATE_DYNAMO_BACKEND": "inductor"}, "warning", "accelerate makes of a run"),
    ({"CUDA_VISIBLE_DEVICES": "-1"}, "warning", "hides every GPU"),
    ({"CUDA_VISIBLE_DEVICES": "0,1"}, "note", "which GPUs there are"),
    ({"CUDA_LAUNCH_BLOCKING": "1"}, "warning", "slow"),
    ({"PYTORCH_ALLOC_CONF": "expandable_segments:True"}, "note", "handed out"),
    ({"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments"}, "warning", "no setting"),
    ({"HF_ENDPOINT": "http://mirror.example"}, "warning", "without encryption"),
    ({"HF_ENDPOINT": "mirror"}, "warning", "no address"),
    ({"HF_HUB_OFFLINE": "1"}, "note", "nothing is downloaded"),
    ({"LORAFIT_DEVICE": "gpu"}, "warning", "the CPU is used"),
    ({"LD_PRELOAD": "/nowhere/libjemalloc.so"}, "warning", "does not exist"),
    ({"LD_LIBRARY_PATH": "/usr/local/cuda-11/lib64"}, "warning", "another version"),
    ({"TMPDIR": "/nowhere/tmp"}, "warning", "does not exist"),
    ({"HF_TOKEN": "hf_abc"}, "note", "set: private"),
    ({"https_proxy": "http://me:hidden@proxy:1"}, "note", "://…@proxy:1"),
    ({"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}, "warning", "pickles"),
])
def test_a_variable_says_what_it_does_here(values: dict[str, str], verdict: str, said: str) -> None:
    found = list(environment.examine_environment(values))
    assert any(each.verdict == verdict and said in each.text for each in found), found
    assert all(each.remedy for each in found if each.verdict != "note")
    text = " ".join(each.text for each in found)
    assert "hf_abc" not in text
    assert "hidden" not in text


def test_every_variable_that_the_code_reads_is_known() -> None:
    """Names in quotes beside environ, in all of lorafit."""
    import re

    read = {name for file in (REPOSITORY / "lorafit").rglob("*.py")
            if "doctor" not in file.parts
            for name in re.findall(r"environ(?:\.get|\.setdefault)?[\[(]\s*\"([A-Z_]+)\"",
                                   file.read_text(encoding="utf-8"))}
    assert {"LORAFIT_DEVICE", "LORAFIT_CACHE", "OMP_NUM_THREADS"} <= read
    unspoken = {"COLUMNS", "TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS",
                "DISABLE_SAFETENSORS_CONVERSION"}
    unknown = [name for name in read - unspoken
               if not any(re.fullmatch(each.pattern, name) for each in environment.VARIABLES)]
    assert unknown == []


def test_an_empty_environment_is_in_order() -> None:
    (found,) = environment.examine_environment({"HOME": "/root", "OMP_NUM_THREADS": ""})
    assert found.verdict is Verdict.OK


# ---- disks and limits, by the kernel's own refusals


def limited(what: str, code: str) -> list[dict[str, str]]:
    """Findings of `code`, made by a process with small limits."""
    script = ("import json, resource\n" + what + "\n"
              + code + "\nprint(json.dumps([each.as_dict() for each in found]))")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True,
                          cwd=REPOSITORY, env={**os.environ, "PYTHONPATH": str(REPOSITORY)})
    assert done.returncode == 0, done.stderr
    found: list[dict[str, str]] = json.loads(done.stdout)
    return found


def test_a_place_that_cannot_be_written_is_a_line(tmp_path: Path) -> None:
    """Files of at most a MiB: what is written there fails, for root too."""
    found = limited(
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))",
        "from lorafit.doctor.disk import examine_disk\nfound = list(examine_disk())")
    verdicts = {each["name"]: each["verdict"] for each in found}
    assert verdicts == {"current directory": "warning", "lorafit's cache": "problem",
                        "temporary files": "problem", "the hub's cache": "warning"}
    assert all("cannot be written: File too large" in each["text"] for each in found)
    assert list(REPOSITORY.glob(".lorafit-doctor-*")) == []


def test_limits_of_the_process_are_lines() -> None:
    found = {each["name"]: each for each in limited(
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2**33, 2**33))\n"
        "resource.setrlimit(resource.RLIMIT_CPU, (3600, 3600))",
        "from lorafit.doctor.memory import examine_memory\nfound = list(examine_memory())")}
    assert found["open files"]["verdict"] == "warning"
    assert found["address space"]["text"].startswith("at most 8.0 GiB")
    assert found["CPU time"]["text"].startswith("at most 3,600 s")
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 64


def test_places_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("LORAFIT_CACHE", str(tmp_path / "file"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "not" / "there"))
    monkeypatch.chdir(tmp_path)
    found = by_name(disk.examine_disk())
    assert found["lorafit's cache"].verdict is Verdict.PROBLEM
    assert "is no directory" in found["lorafit's cache"].text
    assert found["the hub's cache"].text.endswith("not made yet")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_a_check_that_fails_itself_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Any:
        raise OSError("the disk caught fire")

    monkeypatch.setattr(machine, "examine_disk", broken)
    found = by_name(machine.examine_machine(probes=()))
    assert found["disk"].text == "OSError: the disk caught fire"
    assert "memory" in found
