"""Versions that are known not to work together (docs/LOG.md says where that was seen).

The bounds in pyproject.toml keep a new installation clear of them; one that grew over time, or was
forced, may still have them.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Pair:
    """when: package to a range of versions, all of which have to be installed for `what` to happen.
    """

    name: str
    when: Mapping[str, str]
    what: str
    remedy: str

    def applies(self, versions: Mapping[str, str | None]) -> bool:
        from packaging.specifiers import SpecifierSet

        return all(
            (version := versions[package]) is not None
            and SpecifierSet(wanted).contains(version, prereleases=True)
            for package, wanted in self.when.items())


PAIRS = (
    Pair("torch and experts", {"torch": "<2.10"},
         "fused experts have no CPU kernel in this torch: mixtures of experts fail there",
         "pip install 'torch>=2.10'"),
    Pair("peft and transformers", {"peft": "<0.20", "transformers": ">=5.10"},
         "this peft cannot load adapters on experts under this transformers",
         "pip install 'peft>=0.20'"),
    Pair("bitsandbytes on CPUs", {"bitsandbytes": "<0.50"},
         "8-bit AdamW does not run on a CPU with this bitsandbytes",
         "pip install 'bitsandbytes>=0.50'"),
    Pair("gptqmodel and torch", {"gptqmodel": ">=7.7,<7.8", "torch": "<2.14.1"},
         "this gptqmodel asks for torch 2.14.1; lorafit's tests ran it on torch 2.13 all the same, "
         "installed with --no-deps", "pip install 'torch>=2.14.1'"),
)
