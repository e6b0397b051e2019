"""Rows read while training goes on: every row, in proportion, and exact from any step on."""

import gzip
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorafit.data.dataset import read_held_out
from lorafit.data.stream import StreamFeed
from lorafit.errors import MachineError, UserError
from lorafit.recipe.schema import Data, Source

Feeds = Callable[..., StreamFeed]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    from lorafit.model.base import TINY

    return AutoTokenizer.from_pretrained(TINY)


@pytest.fixture
def feeds(tokenizer: Any) -> Iterator[Feeds]:
    opened = []

    def make(*sources: Any, batch_size: int = 4, seed: int = 0, state: Any = None,
             held_out: Any = None, **settings: Any) -> StreamFeed:
        values = {"streaming": True, "shuffle_rows": 16, "workers": 1, **settings}
        data = Data.model_validate({"train": list(sources), **values})
        checked = None
        if held_out is not None:
            data = data.model_copy(update={"eval": str(held_out)})
            checked = read_held_out(data, tokenizer)
        feed = StreamFeed(data, tokenizer, seed, batch_size, checked, state)
        opened.append(feed)
        return feed

    yield make
    for feed in opened:
        feed.close()


def write_rows(path: Path, rows: int, name: str = "row") -> Path:
    path.write_text("".join(
        json.dumps({"prompt": f"{name} {n}?", "completion": f"It is {n}."}) + "\n"
        for n in range(rows)), encoding="utf-8")
    return path


def places(feed: StreamFeed, steps: range) -> list[str]:
    found = []
    for step in steps:
        examples = feed.step(step)
        found += [examples.place(i) for i in range(len(examples))]
    return [f"{Path(place.file).name}:{place.number}" for place in found]


def test_a_pass_holds_every_row_once_and_the_next_begins_after_it(
    feeds: Feeds, tmp_path: Path,
) -> None:
    path = write_rows(tmp_path / "a.jsonl", 40)
    drawn = places(feeds(str(path)), range(20))
    wanted = sorted(f"a.jsonl:{n}" for n in range(1, 41))
    assert sorted(drawn[:40]) == wanted
    assert sorted(drawn[40:]) == wanted
    assert drawn[:40] != drawn[40:]
    assert drawn[:40] != wanted


def test_rows_are_shuffled_within_their_block(feeds: Feeds, tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", 2000)
    drawn = places(feeds(str(tmp_path / "a.jsonl"), shuffle_rows=500), range(500))
    numbers = np.array([int(place.rpartition(":")[2]) for place in drawn])
    for block in range(4):
        part = numbers[500 * block : 500 * (block + 1)]
        assert sorted(part) == list(range(500 * block + 1, 500 * (block + 1) + 1))
        assert abs(np.corrcoef(np.arange(500), part)[0, 1]) < 0.2


@pytest.mark.parametrize("workers", [1, 2])
def test_any_step_on_is_the_same_from_a_saved_state(
    feeds: Feeds, tmp_path: Path, workers: int,
) -> None:
    sources = [str(write_rows(tmp_path / "a.jsonl", 1300)),
               Source(path=str(write_rows(tmp_path / "b.jsonl", 700)), weight=0.5)]
    whole = feeds(*sources, batch_size=33, shuffle_rows=600, workers=workers)
    drawn, states = [], {}
    for step in range(90):
        states[step] = json.loads(json.dumps(whole.state(step)))
        drawn.append(places(whole, range(step, step + 1)))
    for step in (0, 1, 17, 18, 41, 89):
        again = feeds(*sources, batch_size=33, shuffle_rows=600, workers=workers,
                      state=states[step])
        assert places(again, range(step, step + 1)) == drawn[step]
        again.close()


def test_tokens_are_those_of_rows_that_are_prepared_first(
    feeds: Feeds, tmp_path: Path, tokenizer: Any,
) -> None:
    from lorafit.data.dataset import read_data

    path = write_rows(tmp_path / "a.jsonl", 30)
    data, _ = read_data(Data(train=str(path)), tokenizer, 0)
    prepared = {str(data.place(i)): data.tokens(i) for i in range(len(data))}
    feed = feeds(str(path), batch_size=5)
    for step in range(6):
        examples = feed.step(step)
        for i in range(5):
            wanted, got = prepared[str(examples.place(i))], examples.tokens(i)
            np.testing.assert_array_equal(got.ids, wanted.ids)
            np.testing.assert_array_equal(got.supervised, wanted.supervised)
            assert examples.lengths[i] == len(got)


def test_sources_keep_their_share(feeds: Feeds, tmp_path: Path) -> None:
    sources = [Source(path=str(write_rows(tmp_path / f"{name}.jsonl", rows)), weight=weight)
               for name, rows, weight in (("a", 9000, 3.0), ("b", 300, 1.0))]
    drawn = Counter(place[0] for place in places(feeds(*sources, batch_size=50), range(120)))
    assert drawn["a"] + drawn["b"] == 6000
    assert drawn["a"] / drawn["b"] == pytest.approx(3, rel=0.35)  # in pieces of 500 rows


def test_another_seed_is_another_order_of_the_same_rows(feeds: Feeds, tmp_path: Path) -> None:
    path = str(write_rows(tmp_path / "a.jsonl", 40))
    one, two = (places(feeds(path, seed=seed), range(10)) for seed in (0, 1))
    assert one != two
    assert sorted(one) == sorted(two)


def test_long_rows_are_dropped_or_refused_with_their_place(feeds: Feeds, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", 20)
    lines = path.read_text().splitlines()
    lines[6] = json.dumps({"prompt": "?", "completion": "very long " * 60})
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(UserError, match=r"a\.jsonl:7: 1 of 20 rows are longer"):
        feeds(str(path), max_length_tokens=100).step(0)
    drawn = places(feeds(str(path), max_length_tokens=100, on_long="drop", batch_size=19),
                   range(2))
    assert sorted(drawn[:19]) == sorted(drawn[19:])
    assert "a.jsonl:7" not in drawn


def test_a_bad_row_stops_the_stream_when_it_comes(feeds: Feeds, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", 3000)
    lines = path.read_text().splitlines()
    lines[2500] = '{"prompt": "x", "completion": 5}'
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress("\n".join(lines).encode()))
    feed = feeds(str(packed), batch_size=100, shuffle_rows=1000)
    feed.step(0)
    with pytest.raises(UserError, match=r"a\.jsonl\.gz:2501: completion is int, not text"):
        places(feed, range(1, 30))


def test_held_out_rows_do_not_come(feeds: Feeds, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", 40)
    held_out = write_rows(tmp_path / "eval.jsonl", 10)
    with pytest.raises(UserError, match=r"the row is also held out; 10 rows are like that"):
        feeds(str(path), held_out=held_out, shuffle_rows=40).step(0)
    feed = feeds(str(path), held_out=held_out, checks={"overlap": "drop"}, batch_size=30)
    assert sorted(places(feed, range(1))) == sorted(f"a.jsonl:{n}" for n in range(11, 41))


def test_what_was_used_is_removed(feeds: Feeds, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", 4000)
    feed = feeds(str(path), batch_size=100, shuffle_rows=500)
    for step in range(60):
        feed.step(step)
        assert len(list(feed.directory.iterdir())) <= 3
    feed.close()
    assert not feed.directory.exists()


def test_the_report_tells_one_file_from_another(feeds: Feeds, tmp_path: Path) -> None:
    one = feeds(str(write_rows(tmp_path / "a.jsonl", 40))).report()
    assert one.rows_read >= 16
    assert any("streaming" in notice for notice in one.notices)
    longer = feeds(str(write_rows(tmp_path / "a.jsonl", 41))).report()
    (tmp_path / "b").mkdir()
    moved = feeds(str(write_rows(tmp_path / "b" / "a.jsonl", 40))).report()
    assert one.fingerprint == moved.fingerprint
    assert one.fingerprint != longer.fingerprint


def test_what_became_of_all_rows_is_counted_over_blocks_and_resumes(
    feeds: Feeds, tmp_path: Path,
) -> None:
    path = write_rows(tmp_path / "a.jsonl", 1500)
    lines = path.read_text().splitlines()
    for number in (100, 700, 1200):
        lines[number] = json.dumps({"prompt": "?", "completion": "very long " * 60})
    for number in (300, 1300):
        lines[number] = json.dumps({"prompt": "Ã© ?", "completion": f"well {number}"})
    path.write_text("\n".join(lines), encoding="utf-8")
    settings = {"max_length_tokens": 100, "on_long": "drop", "shuffle_rows": 500,
                "batch_size": 100}
    feed = feeds(str(path), **settings)
    for step in range(14):
        feed.step(step)
    read = feed.read()
    assert (read["rows_read"], read["rows_dropped_long"], read["encoding"]) == (1500, 3, 2)
    assert read["rows_used"] == 1497
    again = feeds(str(path), **settings, state=json.loads(json.dumps(feed.state(13))))
    again.step(13)
    assert again.read() == read


def test_a_stream_is_not_taken_up_again_on_other_rows(feeds: Feeds, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", 1200)
    feed = feeds(str(path), shuffle_rows=500, batch_size=100)
    for step in range(7):
        feed.step(step)
    state = feed.state(6)
    assert state["position"]["block"] == 1
    feeds(str(path), shuffle_rows=500, batch_size=100, state=state).step(6)
    path.write_bytes(path.read_bytes().replace(b"It is 700.", b"It is 007."))
    with pytest.raises(UserError, match="the rows changed since the run was started"):
        feeds(str(path), shuffle_rows=500, batch_size=100, state=state).step(6)


def test_a_disk_that_refuses_is_named_with_the_remedy(feeds: Feeds, tmp_path: Path) -> None:
    feed = feeds(str(write_rows(tmp_path / "rows.jsonl", 40)))
    feed.step(0)
    shutil.rmtree(feed.directory)
    feed.directory.touch()  # nothing can be written below a file
    with pytest.raises(MachineError, match=r"lorafit-stream-.*cannot be written.*\n.*TMPDIR"):
        feed.step(12)
    feed.directory.unlink()
