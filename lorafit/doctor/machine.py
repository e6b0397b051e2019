"""`lorafit doctor`: what is installed here, and whether it works together."""

from collections.abc import Callable, Iterator, Sequence

from lorafit.doctor.disk import examine_disk
from lorafit.doctor.environment import examine_environment
from lorafit.doctor.finding import Finding, Section
from lorafit.doctor.isolated import Probe, isolated
from lorafit.doctor.memory import examine_memory
from lorafit.doctor.probes import PROBES, RANKS
from lorafit.doctor.versions import examine_extras, examine_versions


def examine_machine(*, with_ranks: bool = False, probes: Sequence[Probe] = PROBES
                    ) -> Iterator[Finding]:
    """Findings in the order in which they are made, each as soon as it is there.

    Nothing in here raises: what goes wrong is a finding. with_ranks: two processes meet over
    sockets of this machine; without it no socket is opened.
    """
    yield from _guarded("packages", examine_versions)
    tried = [*probes, *((RANKS,) if with_ranks else ())]
    yield from _guarded("torch", lambda: isolated(tried))
    yield from _guarded("optional", examine_extras)
    yield from _guarded("memory and cores", examine_memory)
    yield from _guarded("disk", examine_disk)
    yield from _guarded("environment", examine_environment)


def _guarded(title: str, examine: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        yield from examine()
    except Exception as error:
        yield Section(title).failed(title, error, "please report this: the rest of this section "
                                    "was not looked at")
