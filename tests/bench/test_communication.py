"""What ranks send: the formulas against a ring that is played through, the count, and the page."""

import os
import sys
from typing import Any

import pytest

from lorafit.bench import communication as paper
from tests.conftest import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "scripts"))
import benchmark_communication as script

PAGE = REPOSITORY / "docs" / "scaling.md"


def played(ranks: int, size: int) -> tuple[float, float]:
    """Bytes that each rank of a ring sends until all have the sum, and until each has its part.

    Every rank holds a list of parts; in a round it hands the one that it last got on.
    """
    part = size / ranks
    sums = [[{rank} for _ in range(ranks)] for rank in range(ranks)]
    sent = 0.0
    for turn in range(ranks - 1):
        handed = [(rank, (rank - turn) % ranks) for rank in range(ranks)]
        added = [sums[rank][number] for rank, number in handed]
        for (rank, number), each in zip(handed, added, strict=True):
            receiver = (rank + 1) % ranks
            sums[receiver][number] = sums[receiver][number] | each
        sent += part
    scattered = sent
    everyone = set(range(ranks))
    assert all(sums[rank][(rank + 1) % ranks] == everyone for rank in range(ranks))
    for turn in range(ranks - 1):
        handed = [(rank, (rank + 1 - turn) % ranks) for rank in range(ranks)]
        whole = [sums[rank][number] for rank, number in handed]
        for (rank, number), each in zip(handed, whole, strict=True):
            sums[(rank + 1) % ranks][number] = each
        sent += part
    assert all(each == everyone for of_rank in sums for each in of_rank)
    return sent, scattered


@pytest.mark.parametrize("ranks", [2, 3, 7, 8, 64])
def test_a_ring_sends_what_the_formulas_say(ranks: int) -> None:
    everywhere, parts = played(ranks, 1000)
    assert paper.all_reduced(1000, ranks) == pytest.approx(everywhere)
    assert paper.scattered(1000, ranks) == pytest.approx(parts)
    assert paper.gathered(1000, ranks) == pytest.approx(everywhere - parts)


def test_weights_are_counted_as_lorafit_trains_them() -> None:
    """41,943,040 is LoRA's r·(in + out) over all linear layers of Llama-3.1-8B, by hand."""
    lora, flops = script.held_by(script.BIG["Llama-3.1-8B"], script.LORA, "none", 2)
    trained = [each for each in lora if each.is_trained]
    assert sum(each.numbers for each in trained) == 41_943_040
    assert sum(each.numbers for each in lora if not each.is_trained) == 8_030_261_248
    full, of_all = script.held_by(script.BIG["Llama-3.1-8B"], script.FULL, "none", 2)
    assert sum(each.numbers for each in full if each.is_trained) == 8_030_261_248
    assert flops / of_all == pytest.approx(2 / 3, abs=0.01)
    four_bits, _ = script.held_by(script.BIG["Llama-3.1-8B"], script.LORA, "nf4", 2)
    frozen = sum(each.padded_bytes(1) for each in four_bits
                 if each.layer is not None and not each.is_trained and each.item_bytes == 1)
    assert frozen == 32 * (4096 * 4096 * 2 + 4096 * 1024 * 2 + 3 * 4096 * 14_336) // 2


def test_fewer_rows_than_ranks_cost_as_many_as_ranks() -> None:
    narrow = paper.Held((16, 100), 4, True, 0)
    assert [narrow.padded_bytes(ranks) for ranks in (1, 3, 16, 64)] == [6400, 7200, 6400, 25_600]


def test_the_page_has_the_tables_that_the_formulas_give() -> None:
    text = PAGE.read_text(encoding="utf-8")
    made = text
    for name, table in (("bytes", script.bytes_table), ("time", script.time_table)):
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        before, rest = made.split(begin)
        rows = "\n".join(table())
        made = f"{before}{begin}{rows}\n{end}{rest.split(end)[1]}"
    if "LORAFIT_WRITE_DOCS" in os.environ:
        PAGE.write_text(made, encoding="utf-8")
    else:
        assert text == made, "run make docs"


def counted(name: str, steps: int, micro_batches: int) -> dict[str, Any]:
    if script.namespace() is None:
        pytest.skip("a network namespace of its own is not permitted here")
    (way,) = [way for way in script.WAYS if way.name == name]
    (found,) = script.count_all([way], steps, micro_batches)
    return found


def test_ranks_that_share_the_base_send_what_is_on_paper() -> None:
    found = counted("FSDP2, LoRA on nf4", steps=2, micro_batches=2)
    assert found["ratio"] == pytest.approx(1, abs=script.ALLOWED)
    assert found["paper"] > 50e6  # not a small thing within a large allowance


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", [way.name for way in script.WAYS])
def test_every_way_sends_what_is_on_paper(name: str) -> None:
    assert counted(name, steps=3, micro_batches=2)["ratio"] == pytest.approx(1, abs=script.ALLOWED)
