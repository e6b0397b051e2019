"""What is tried in another process (doctor/isolated.py): each module may load torch and crash.

A probe is a function of the section that it makes findings in. A new one is a function here and a
line in PROBES.
"""

from lorafit.doctor.isolated import Probe

_HERE = "lorafit.doctor.probes"
_REINSTALL_TORCH = "install torch for this machine: https://pytorch.org/get-started/locally"

PROBES = (
    Probe("torch", "torch", f"{_HERE}.torch_here:build", limit_s=120, remedy=_REINSTALL_TORCH),
    Probe("devices", "torch", f"{_HERE}.torch_here:devices", ("torch",), 60, _REINSTALL_TORCH),
    Probe("forward and backward", "torch", f"{_HERE}.lora_layer:on_each_device", ("torch",), 60,
          "set LORAFIT_DEVICE=cpu to train without that device"),
    Probe("scaled dot product", "kernels", f"{_HERE}.attention:scaled_dot_product", ("torch",), 60,
          "set model.attention=eager"),
    Probe("flex attention", "kernels", f"{_HERE}.attention:flex", ("torch",), 60,
          "nothing of lorafit needs it"),
    Probe("flash-attn", "kernels", f"{_HERE}.attention:flash", ("torch",), 60,
          "install flash-attn for this torch, or pip uninstall flash-attn"),
    Probe("packed attention", "kernels", f"{_HERE}.kernels:packed", ("torch",), 60,
          "set training.batching=padded"),
    Probe("fast path", "kernels", f"{_HERE}.kernels:fast_path", ("torch",), 60,
          "training compares again, and takes the plain path where one disagrees"),
    Probe("bitsandbytes", "quantisation", f"{_HERE}.quantisation:library", ("torch",), 60,
          "pip install -U 'lorafit[quantization]'"),
    Probe("nf4", "quantisation", f"{_HERE}.quantisation:four_bits", ("torch", "bitsandbytes"), 60,
          "set model.quantization=none"),
    Probe("int8", "quantisation", f"{_HERE}.quantisation:eight_bits", ("torch", "bitsandbytes"), 60,
          "set model.quantization=none"),
    Probe("8-bit AdamW", "quantisation", f"{_HERE}.quantisation:optimizer",
          ("torch", "bitsandbytes"), 60, "set training.optimizer=adamw"),
    Probe("libraries", "a step of training", f"{_HERE}.step:libraries", ("torch",), 120,
          "pip install the versions above"),
    Probe("embedded base", "a step of training", f"{_HERE}.step:train_once",
          ("torch", "libraries"), 120),
)
RANKS = Probe("two processes", "ranks", f"{_HERE}.ranks:meet", ("torch",), 60,
              "let the host's name resolve to an address of its own (/etc/hosts), or set "
              "GLOO_SOCKET_IFNAME to an interface")
