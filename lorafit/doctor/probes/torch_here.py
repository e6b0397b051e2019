"""torch: how it was built, what it finds, and whether that fits the driver."""

import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lorafit.doctor.finding import Finding, Section, size

_DRIVER = Path("/proc/driver/nvidia/version")


def build(section: Section) -> Iterator[Finding]:
    """Its build, libraries of matrix products, threads."""
    import torch

    cuda = torch.version.cuda
    hip = getattr(torch.version, "hip", None)
    for_what = f"CUDA {cuda}" if cuda else f"ROCm {hip}" if hip else "CPUs"
    yield section.ok("torch", f"{torch.__version__}, built for {for_what}")
    backends: Any = torch.backends
    libraries = [name for name, there in (
        ("MKL", backends.mkl.is_available()), ("oneDNN", backends.mkldnn.is_available()),
        ("OpenMP", backends.openmp.is_available())) if there]
    text = (f"{torch.get_num_threads()}, with {', '.join(libraries) or 'no library'}; "
            f"instructions: {torch.backends.cpu.get_cpu_capability()}"
            + (", AMX" if getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)() else ""))
    if "MKL" not in libraries and "oneDNN" not in libraries and os.uname().machine == "x86_64":
        yield section.warning("threads", f"{text}: products of matrices are slow",
                              "install torch from its own index")
    else:
        yield section.ok("threads", text)
    yield from _pools(section)


def devices(section: Section) -> Iterator[Finding]:
    """Every device with what it has, and a GPU that this torch does not see."""
    import torch

    yield section.ok("cpu", "bfloat16 by matrix tiles (AMX)"
                     if getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
                     else "no matrix tiles (AMX): float32 is faster than bfloat16")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        is_there = torch.cuda.is_available()
    if is_there:
        for index in range(torch.cuda.device_count()):
            yield _gpu(section, index)
    elif (gpu := _gpu_of_the_machine()) is not None:
        yield _unseen(section, gpu, [str(each.message).splitlines()[0] for each in caught])
    if torch.backends.mps.is_available():
        yield section.ok("mps", "Apple GPU")
    if hasattr(torch, "xpu") and torch.xpu.is_available():
        yield section.note("xpu", f"{torch.xpu.device_count()} there; lorafit does not use them")


def usable_devices() -> list[str]:
    """Devices to try things on, as torch names them."""
    import torch

    found = ["cpu"]
    if os.environ.get("LORAFIT_DEVICE") in (None, "cuda") and torch.cuda.is_available():
        found += [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if os.environ.get("LORAFIT_DEVICE") in (None, "mps") and torch.backends.mps.is_available():
        found.append("mps")
    return found


def _gpu(section: Section, index: int) -> Finding:
    import torch

    name = f"cuda:{index}"
    facts = torch.cuda.get_device_properties(index)
    major, minor = torch.cuda.get_device_capability(index)
    free, total = torch.cuda.mem_get_info(index)
    text = (f"{facts.name}, compute capability {major}.{minor}, {size(total)}, {size(free)} of it "
            f"free{_driver()}")
    known = torch.cuda.get_arch_list()
    kinds = [int(arch.rpartition("_")[2].rstrip("af")) for arch in known if "_" in arch]
    if kinds and torch.version.cuda and not any(
            kind // 10 == major and kind % 10 <= minor for kind in kinds) and not any(
            arch.startswith("compute_") for arch in known):
        return section.problem(name, f"{text}: this torch has no kernels for it "
                               f"({', '.join(known)})",
                               "install a torch for another CUDA")
    if free < total / 4:
        return section.warning(name, f"{text}: other programs use it", "see nvidia-smi")
    return section.ok(name, text)


def _unseen(section: Section, gpu: str, warned: list[str]) -> Finding:
    import torch

    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1", "NoDevFiles"):
        return section.note("cuda", f"{gpu}, hidden by CUDA_VISIBLE_DEVICES")
    if not torch.version.cuda and not getattr(torch.version, "hip", None):
        return section.warning("cuda", f"{gpu}, and this torch is built for CPUs",
                               "install a torch for CUDA: https://pytorch.org/get-started/locally")
    return section.problem("cuda", f"{gpu}, and torch does not find it{_driver()}"
                           + (f": {warned[0]}" if warned else ""),
                           f"install a driver that has CUDA {torch.version.cuda}, or a torch for "
                           "an older CUDA")


def _gpu_of_the_machine() -> str | None:
    """What says that there is a GPU of NVIDIA, though torch sees none."""
    if Path("/dev/nvidia0").exists():
        return "there is a GPU (/dev/nvidia0)"
    if _DRIVER.exists() and shutil.which("nvidia-smi"):
        return "there is a driver of NVIDIA"
    return None


def _driver() -> str:
    try:
        words = _DRIVER.read_text(encoding="ascii", errors="replace").splitlines()[0].split()
    except (OSError, IndexError):
        return ""
    version = next((word for word in words if word.count(".") >= 1 and word[0].isdigit()), "")
    return f", driver {version}" if version else ""


def _pools(section: Section) -> Iterator[Finding]:
    """Several pools of threads in one process slow each other down."""
    try:
        from threadpoolctl import threadpool_info
    except ImportError:
        return
    import numpy  # noqa: F401

    openmp = {each["filepath"] for each in threadpool_info() if each.get("user_api") == "openmp"}
    if len(openmp) > 1:
        names = ", ".join(sorted(Path(path).name for path in openmp))
        yield section.warning("OpenMP", f"{len(openmp)} libraries of it are loaded: {names}",
                              "set KMP_DUPLICATE_LIB_OK only if something fails; better install "
                              "numpy and torch from one source")
