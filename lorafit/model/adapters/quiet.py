"""peft's warnings that are advice to programmers, kept from users."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_advice() -> Iterator[None]:
    """Drop the warnings about what lorafit has checked itself."""
    with warnings.catch_warnings():
        for category in (FutureWarning, DeprecationWarning):
            warnings.simplefilter("ignore", category)
        warnings.filterwarnings("ignore", message=".*ensure_weight_tying.*")
        # --base names another copy of the base that the adapter names.
        warnings.filterwarnings("ignore", message=".*base_model_name_or_path.* was renamed.*")
        # Checked by targets.resolve_targets, which also knows the names of fused experts.
        warnings.filterwarnings("ignore", message=".*_pattern keys did not match.*")
        # Two-dimensional weights that are stored the other way round are recognised by peft.
        warnings.filterwarnings("ignore", message=".*fan_in_fan_out is set to.*")
        # boft computes without the extension; it is a speed-up for GPUs.
        warnings.filterwarnings("ignore", message=".*CUDA extension.*")
        warnings.filterwarnings("ignore", message="Setting boft_n_butterfly_factor.*")
        # What merging into four bits loses is measured.
        warnings.filterwarnings("ignore", message="Merge lora module to .*-bit linear.*")
        yield
