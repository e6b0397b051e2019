"""Environment variables that change what happens here, and values of them that do harm."""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from lorafit.doctor.finding import Finding, Section
from lorafit.doctor.memory import usable_cores

# What speaks against a value, and the remedy; None where nothing does.
Judge = Callable[[str, Mapping[str, str]], tuple[str, str] | None]


@dataclass(frozen=True)
class Variable:
    """pattern: of its name. what: it does, here. judge: what speaks against a value. hidden: the
    value is never shown. is_fatal: what is spoken against makes runs fail or go wrong."""

    pattern: str
    what: str
    judge: Judge = lambda value, others: None
    hidden: bool = False
    is_fatal: bool = False


def examine_environment(environment: Mapping[str, str] | None = None) -> Iterator[Finding]:
    """A line for each variable that is set and matters."""
    section = Section("environment")
    values = dict(os.environ if environment is None else environment)
    seen = False
    for variable in VARIABLES:
        for name in sorted(values):
            if not re.fullmatch(variable.pattern, name) or not values[name]:
                continue
            seen = True
            value = "set" if variable.hidden else f"= {_shown(values[name])}"
            against = variable.judge(values[name], values)
            if against is None:
                yield section.note(name, f"{value}: {variable.what}")
            else:
                judged = section.problem if variable.is_fatal else section.warning
                yield judged(name, f"{value}: {against[0]}", against[1])
    if not seen:
        yield section.ok("variables", "none is set that matters here")


def _shown(value: str) -> str:
    """A value without what may be secret in an address, and not too long."""
    value = re.sub(r"://[^/@\s]*@", "://…@", value)
    value = re.sub(r"(?i)((?:token|key|secret|password)=)[^&;,\s]+", r"\1…", value)
    value = value.encode("unicode_escape").decode("ascii") if not value.isprintable() else value
    return value if len(value) <= 100 else f"{value[:99]}…"


def _threads(value: str, others: Mapping[str, str]) -> tuple[str, str] | None:
    if not value.split(",")[0].isdecimal() or int(value.split(",")[0]) < 1:
        return "is no number of threads", "unset it"
    cores = usable_cores()
    if int(value.split(",")[0]) > cores:
        return (f"more threads than this process may use cores ({cores:g}): slower, where a "
                "library takes it at its word", f"unset it, or set it to {max(1, int(cores))}")
    return None


def _two_pools(value: str, others: Mapping[str, str]) -> tuple[str, str] | None:
    wrong = _threads(value, others)
    omp = others.get("OMP_NUM_THREADS")
    if wrong is None and omp and omp != value:
        return (f"differs from OMP_NUM_THREADS ({omp}): two pools of threads of different size",
                "set only OMP_NUM_THREADS")
    return wrong


def _devices(value: str, others: Mapping[str, str]) -> tuple[str, str] | None:
    if value.strip() in ("-1", "NoDevFiles"):
        return "hides every GPU", "unset it to train on a GPU"
    return None


def _slow(what: str) -> Judge:
    return lambda value, others: None if value in ("0", "") else (what, "unset it for training")


def _always(what: str, remedy: str) -> Judge:
    return lambda value, others: (what, remedy)


def _allocator(value: str, others: Mapping[str, str]) -> tuple[str, str] | None:
    for part in re.sub(r"\[[^]]*\]", "", value).split(","):
        if ":" not in part:
            return f"{part!r} is no setting of the form name:value", "correct it, or unset it"
    both = {name: others[name] for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
            if others.get(name)}
    if len(set(both.values())) > 1:
        return ("PYTORCH_ALLOC_CONF and PYTORCH_CUDA_ALLOC_CONF say different things",
                "set only PYTORCH_ALLOC_CONF")
    return None


def _rank(value: str, others: Mapping[str, str]) -> tuple[str, str] | None:
    """RANK and WORLD_SIZE together make every verb one rank of several that are waited for."""
    if "RANK" in others and "WORLD_SIZE" in others:
        return ("left over from a launcher: `lorafit train` takes itself for one rank of "
                f"{others['WORLD_SIZE']} and waits for the others",
                "unset RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT")
    return None


def _local_rank(value: str, others: Mapping[str, str]) -> tuple[str, str] | None:
    if "RANK" in others:
        return "left over from a launcher", "unset it"
    return ("left over from a launcher: it chooses the GPU", "unset it") if value != "0" else None


def _directory(value: str, others: Mapping[str, str]) -> tuple[str, str] | None:
    path = Path(os.path.expanduser(value))
    if path.exists() and not path.is_dir():
        return "is no directory", "name a directory, or unset it"
    return None


def _existing(value: str, others: Mapping[str, str]) -> tuple[str, str] | None:
    if not Path(os.path.expanduser(value)).is_dir():
        return "does not exist, so it is not used", "make the directory, or unset it"
    return None


def _device(value: str, others: Mapping[str, str]) -> tuple[str, str] | None:
    if value not in ("cpu", "cuda", "mps"):
        return "names no kind of device, so the CPU is used", "use cpu, cuda or mps, or unset it"
    return None


def _preloaded(value: str, others: Mapping[str, str]) -> tuple[str, str] | None:
    missing = [part for part in re.split(r"[:\s]+", value) if "/" in part
               and not Path(part).exists()]
    if missing:
        return f"{missing[0]} does not exist", "correct it, or unset it"
    return None


def _shadows(value: str, others: Mapping[str, str]) -> tuple[str, str] | None:
    names = ("torch", "transformers", "peft", "accelerate", "datasets", "safetensors", "numpy",
             "tokenizers", "bitsandbytes", "lorafit", "yaml", "json", "typing")
    for folder in value.split(os.pathsep):
        for name in names:
            for path in (Path(folder) / name, Path(folder) / f"{name}.py"):
                # A folder without __init__.py gives way to a package further down the path.
                found = path.is_file() or (path / "__init__.py").is_file()
                if found and name != "lorafit":
                    return (f"{path} is taken in place of the installed {name}",
                            "take the folder out of PYTHONPATH, or rename it")
    return None


def _endpoint(value: str, others: Mapping[str, str]) -> tuple[str, str] | None:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return "is no address of a server", "write https://…, or unset it"
    if parts.scheme == "http" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
        return ("the hub, and your token with it, are spoken to without encryption",
                "use an https address")
    return None


_LAUNCHER = "of a launcher; lorafit takes itself for one of several ranks with RANK and WORLD_SIZE"
VARIABLES = (
    Variable("LORAFIT_DEVICE", "the kind of device to train on", _device),
    Variable("LORAFIT_CACHE", "where tokenised rows are kept", _directory),
    Variable("LORAFIT_(LAUNCHER_PID|RESTARTS|STOP_AT|LAST_WORDS)",
             "what lorafit's launcher tells its ranks", _always(
                 "is set by lorafit for its ranks, and left over here", "unset it")),
    Variable("LORAFIT_.*", "not read by lorafit, but perhaps by its tests"),
    Variable("XDG_CACHE_HOME", "caches are below it, unless LORAFIT_CACHE or HF_HOME is set",
             _directory),
    Variable("TMPDIR", "temporary files, in a stream the rows of a block", _existing),
    Variable("OMP_NUM_THREADS", "threads of a computation on the CPU", _threads),
    Variable("MKL_NUM_THREADS|OPENBLAS_NUM_THREADS|NUMEXPR_NUM_THREADS",
             "threads of a library for products of matrices", _two_pools),
    Variable("(MKL|KMP|GOMP)_.*|OMP_(?!NUM_THREADS).*", "how threads are placed and wait",
             lambda value, others: None),
    Variable("CUDA_VISIBLE_DEVICES|HIP_VISIBLE_DEVICES", "which GPUs there are", _devices),
    Variable("CUDA_LAUNCH_BLOCKING", "waits for each kernel",
             _slow("every kernel is waited for: for finding errors, slow otherwise")),
    Variable("PYTORCH_ALLOC_CONF|PYTORCH_CUDA_ALLOC_CONF", "how memory of a GPU is handed out",
             _allocator),
    Variable("PYTORCH_NO_CUDA_MEMORY_CACHING", "memory is not kept",
             _slow("every allocation asks the driver: slow")),
    Variable("NVIDIA_TF32_OVERRIDE|TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "float32 products in TF32",
             lambda value, others: ("float32 is computed with 10 bits of mantissa", "unset it")
             if value == "1" else None),
    Variable("CUBLAS_WORKSPACE_CONFIG", "makes cuBLAS deterministic"),
    Variable("BNB_CUDA_VERSION", "bitsandbytes takes kernels for another CUDA than torch's",
             _always("bitsandbytes takes kernels for another CUDA than torch's", "unset it")),
    Variable("TORCHDYNAMO_DISABLE|TORCH_COMPILE_DISABLE", "nothing is compiled; lorafit compiles "
             "nothing itself"),
    Variable("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "", _always(
        "pickles are loaded without protection, by any library here", "unset it")),
    Variable("THP_MEM_ALLOC_ENABLE", "large tensors of a CPU in huge pages (lorafit sets it to 1)"),
    Variable("NCCL_DEBUG", "what NCCL writes about itself"),
    Variable("NCCL_P2P_DISABLE|NCCL_IB_DISABLE|NCCL_SHM_DISABLE", "how GPUs talk to each other",
             _slow("GPUs talk to each other by a slower way")),
    Variable("NCCL_.*|GLOO_.*", "how ranks talk to each other"),
    Variable("RANK|WORLD_SIZE", _LAUNCHER, _rank, is_fatal=True),
    Variable("LOCAL_RANK|LOCAL_WORLD_SIZE", _LAUNCHER, _local_rank),
    Variable("MASTER_ADDR|MASTER_PORT|TORCHELASTIC_.*|TORCH_ELASTIC_.*", _LAUNCHER),
    Variable("SLURM_(STEP_ID|STEPID|PROCID|LOCALID|NODEID|NTASKS|STEP_NUM_TASKS)", "with more than "
             "one task of an srun, each is taken for a rank"),
    Variable("SLURM_.*(NODELIST|TASKS_PER_NODE)|SLURM_(JOB_ID|JOBID|LAUNCH_NODE_IPADDR|PTY_PORT)",
             "where the tasks of an srun are"),
    Variable("TORCH_CPP_LOG_LEVEL", "what torch writes about connections; ERROR for ranks, if not "
             "set"),
    Variable("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "not taken from here: lorafit accumulates "
             "by itself"),
    Variable("ACCELERATE_USE_FSDP", "taken as --strategy fsdp where there are several ranks"),
    Variable("ACCELERATE_USE_(DEEPSPEED|MEGATRON_LM|PARALLELISM_CONFIG)", "", _always(
        "is refused by lorafit train", "unset it"), is_fatal=True),
    Variable("FSDP_OFFLOAD_PARAMS", "with ACCELERATE_USE_FSDP, taken as --cpu-offload"),
    Variable("FSDP_.*", "settings of accelerate's own sharding, which lorafit does not use"),
    Variable("ACCELERATE_.*", "left by accelerate's launcher or config", _always(
        "changes what accelerate makes of a run", "unset it unless you mean it")),
    Variable("HF_TOKEN|HUGGING_FACE_HUB_TOKEN", "private and gated repositories can be read",
             hidden=True),
    Variable("HF_HOME|HF_HUB_CACHE|HUGGINGFACE_HUB_CACHE|HF_DATASETS_CACHE", "where downloads are "
             "kept", _directory),
    Variable("HF_HUB_OFFLINE", "nothing is downloaded; what is in the hub's cache is used"),
    Variable("HF_ENDPOINT", "the hub is asked here", _endpoint),
    Variable("HF_HUB_DISABLE_TELEMETRY|DO_NOT_TRACK", "no telemetry (lorafit switches it off "
             "itself)"),
    Variable("HF_HUB_(?!OFFLINE|CACHE|DISABLE_TELEMETRY).*|HF_XET_.*|HF_ALLOW_.*",
             "how downloads from the hub work"),
    Variable("TRANSFORMERS_CACHE|TRANSFORMERS_OFFLINE", "", _always(
        "was replaced and is not read by this transformers", "use HF_HOME, HF_HUB_OFFLINE")),
    Variable("USE_HUB_KERNELS", "whether transformers may fetch kernels from the hub"),
    Variable("TOKENIZERS_PARALLELISM", "threads of tokenizers; lorafit's workers go without"),
    Variable("PYTHONPATH", "comes before what is installed", _shadows),
    Variable("PYTHONHOME", "", _always("points Python at another installation", "unset it")),
    Variable("PYTHONHASHSEED", "order of sets; nothing of a run depends on it"),
    Variable("PYTHONOPTIMIZE", "", _slow("assertions are left out")),
    Variable("PYTHONNOUSERSITE", "packages of the user are left out"),
    Variable("LD_PRELOAD", "libraries that come before all others", _preloaded),
    Variable("LD_LIBRARY_PATH", "libraries in it come before those that torch brings",
             lambda value, others: ("CUDA libraries of another version may come before torch's own",
                                    "unset it unless something needs it")
             if re.search(r"cuda|cudnn|nccl", value, re.IGNORECASE) else None),
    Variable("(?i:https?_proxy|all_proxy|no_proxy)", "downloads go through a proxy"),
    Variable("SSL_CERT_FILE|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE", "certificates that servers are "
             "checked with", lambda value, others: None if Path(value).exists() else (
                 "does not exist: downloads fail", "correct it, or unset it")),
)
