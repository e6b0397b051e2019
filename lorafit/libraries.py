"""What has to be settled before the heavy libraries are imported: hub, telemetry, their noise."""

import logging
import os
import socket
import warnings
from urllib.parse import urlsplit

PROBE_TIMEOUT_S = 3.0
_TELEMETRY_OFF = ("HF_HUB_DISABLE_TELEMETRY", "DISABLE_TELEMETRY", "DO_NOT_TRACK",
                  "HF_HUB_DISABLE_UPDATE_CHECK", "WANDB_DISABLED", "DISABLE_MLFLOW_INTEGRATION")
_OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
_YES = ("1", "TRUE", "YES", "ON")
_switched_off: set[str] = set()


def settle(needs_hub: bool) -> bool:
    """Set the environment for hub libraries; return whether the hub can be reached.

    Telemetry is switched off, and so are kernels that transformers would fetch from the hub and
    the conversion of pickles that it would ask a server for. Where nothing of the hub is needed,
    its libraries are put in offline mode: nothing that they do later opens a connection. When the
    hub is needed but does not answer, they are put in offline mode too, so that they take what is
    in their cache, or fail at once instead of retrying for half a minute. Call before importing
    transformers or datasets: they read the environment when they are imported.
    """
    for name in _TELEMETRY_OFF:
        os.environ[name] = "1"
    os.environ.setdefault("USE_HUB_KERNELS", "NO")
    os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"
    # Large tensors of a CPU in huge pages (Linux, where the system allows them on request): fewer
    # page faults. Read by torch when it first allocates.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # which kernels it could not find
    warnings.simplefilter("ignore", FutureWarning)  # what libraries say to each other
    warnings.simplefilter("ignore", DeprecationWarning)
    if not needs_hub:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        for name in _OFFLINE:
            if os.environ.get(name, "").upper() not in _YES:
                os.environ[name] = "1"
                _switched_off.add(name)
        return False
    while _switched_off:  # for an earlier verb in the same process
        os.environ.pop(_switched_off.pop(), None)
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in _YES:
        return False
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY")):
        return True  # only the proxy knows
    endpoint = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    port = endpoint.port or (443 if endpoint.scheme == "https" else 80)
    try:
        socket.create_connection((endpoint.hostname or "", port), PROBE_TIMEOUT_S).close()
    except OSError:
        os.environ["HF_HUB_OFFLINE"] = "1"
        return False
    return True
