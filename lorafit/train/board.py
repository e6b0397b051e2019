"""What ranks of a job tell each other beside their collectives: entries of torch's store.

Over a connection of its own. Entries belong to one start of a job: a job that is started again
reads nothing of what was before.
"""

import json
import os
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from lorafit.train.verdict import Verdict

_JOIN_S = 600.0  # for the store to be there: other machines may start later
_SAID_S = 6.0  # for the rank that speaks for all to do so
_READ_S = 3.0  # for all to read a verdict, before the rank that holds the store ends


class Board:
    """One rank's view of it. read_ranks: those whose posts it reads.

    Everything raises RuntimeError (torch's errors of a store) once the store is gone, and waits for
    ever where it does not answer.
    """

    def __init__(self, rank: int, ranks: int, read_ranks: Sequence[int]) -> None:
        self._rank, self._ranks = rank, ranks
        self._keys = ["verdict", *(f"rank {each}" for each in read_ranks)]
        self._store: Any = None
        self.place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        # Else rank 0 holds the store, as long as it lives.
        self.is_launchers = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"

    @property
    def is_joined(self) -> bool:
        return self._store is not None

    def join(self) -> None:
        from torch import distributed

        torch_stores: Any = distributed
        address, _, port = self.place.rpartition(":")
        store = torch_stores.TCPStore(address, int(port), is_master=False, wait_for_workers=False,
                                      timeout=timedelta(seconds=_JOIN_S))
        start = "/".join(["lorafit", os.environ.get("TORCHELASTIC_RUN_ID", ""),
                          os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"),
                          os.environ.get("LORAFIT_RESTARTS", "0")])
        store = torch_stores.PrefixStore(start, store)
        for key in self._keys:
            store.compare_set(key, "", "")  # there, so that reading does not wait for it
        self._store = store

    def post(self, **values: Any) -> None:
        self._store.set(f"rank {self._rank}", json.dumps(values))

    def read(self) -> tuple[Verdict | None, list[dict[str, Any]]]:
        """The verdict, and what each of `read_ranks` has posted, empty before it has."""
        verdict, *posts = self._store.multi_get(self._keys)
        return (Verdict(**json.loads(verdict)) if verdict else None,
                [json.loads(post) if post else {} for post in posts])

    def propose(self, verdict: Verdict) -> Verdict:
        """The verdict that stands: this one, or an earlier one."""
        values = json.dumps(verdict.as_dict())
        return Verdict(**json.loads(self._store.compare_set("verdict", "", values)))

    def may_say(self) -> bool:
        """Whether this rank is the first that wants to tell people."""
        return int(self._store.add("speakers", 1)) == 1

    def said(self) -> None:
        self._store.add("said", 1)

    def is_said_soon(self) -> bool:
        """Whether another rank tells people; later ones have more patience."""
        until_s = time.monotonic() + _SAID_S + min(self._rank, 20) / 10
        while not (said := int(self._store.add("said", 0))) and time.monotonic() < until_s:
            time.sleep(0.1)
        return said > 0

    def leave(self) -> None:
        """This rank ends; the one that takes the store with it once all others know why."""
        read = int(self._store.add("read", 1))
        if self._rank == 0 and not self.is_launchers:
            until_s = time.monotonic() + _READ_S
            while read < self._ranks and time.monotonic() < until_s:
                time.sleep(0.1)
                read = int(self._store.add("read", 0))
