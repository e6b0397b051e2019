"""Malformed recipes and data: refused at once, in one message, with nothing written."""

import statistics
from concurrent.futures import ThreadPoolExecutor

from reliability.malformed import data, recipes, written
from reliability.malformed.asking import ask
from reliability.malformed.case import Case, Kind, Outcome, fault_of
from reliability.row import Row, Setting, Tally

MEDIAN_S = 1.0


def ask_all(setting: Setting, times: int) -> Tally:
    """Half of `times` are recipes, half data. Of each, what was written by hand comes first, in
    turns with what is drawn; every kind is drawn equally often. Every third is asked of `check`,
    the others of `train`."""
    tally = Tally()
    for name, kinds, by_hand, count in (
            ("recipes", recipes.KINDS, written.recipes(), times // 2),
            ("data", data.KINDS, written.data(), times - times // 2)):
        if not count:
            continue
        cases = chosen(setting, kinds, by_hand, count)
        with ThreadPoolExecutor(setting.jobs) as pool:
            jobs = [pool.submit(ask, case, "check" if number % 3 == 2 else "train",
                                setting.work / name / str(number))
                    for number, (_, case) in enumerate(cases)]
            outcomes = [job.result() for job in jobs]
        for (what, case), outcome in zip(cases, outcomes, strict=True):
            fault = fault_of(case, outcome)
            tally.count(None if fault is None else f"{what}: {fault}")
        # Side by side, processes wait for each other; what each needs is processor time.
        median_s = statistics.median(outcome.seconds if setting.jobs == 1 else outcome.cpu_s
                                     for outcome in outcomes)
        tally.remarks.append(f"{name}: {_in_words(outcomes)}")
        if median_s >= MEDIAN_S:  # one more that was asked, and did not come out
            tally.count(f"{name}: the median is {median_s:.2f} s")
    return tally


def chosen(setting: Setting, kinds: tuple[Kind, ...], by_hand: dict[str, Case],
           times: int) -> list[tuple[str, Case]]:
    """So many cases with names; of few, half are drawn."""
    listed = [(f"tests/malformed/…/{name}", case) for name, case in by_hand.items()]
    draw = setting.draw("malformed", times)
    hand = draw.sample(listed, min(len(listed), times // 2))
    order = draw.sample(range(len(kinds)), len(kinds))
    drawn = []
    for number in range(times - len(hand)):
        kind = kinds[order[number % len(kinds)]]
        drawn.append((f"{kind.__name__} {number}",
                      kind(setting.draw("malformed", kind.__name__, number))))
    return [*hand, *drawn]


def _in_words(outcomes: list[Outcome]) -> str:
    seconds = [outcome.seconds for outcome in outcomes]
    processor_s = statistics.median(outcome.cpu_s for outcome in outcomes)
    return (f"median {statistics.median(seconds):.2f} s ({processor_s:.2f} s of a processor), "
            f"slowest {max(seconds):.1f} s, {sum(each >= MEDIAN_S for each in seconds)} of "
            f"{len(seconds)} over {MEDIAN_S:g} s")


ROW = Row(
    name="malformed",
    title="300 malformed recipes and 300 malformed data files",
    must="exit 2, one message with the place and the remedy, no traceback, nothing written, "
         "median under 1 s",
    times=600,
    times_in_tests=8,
    ask=ask_all,
)
