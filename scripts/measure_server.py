"""Times of a running server: answers one after the other, and at once.

    lorafit serve runs/a runs/b --port 8000
    python scripts/measure_server.py http://127.0.0.1:8000/v1 --models a,b --tokens 64

Every answer has exactly as many tokens as asked for (ignore_eos), so that times can be compared.
Each row is the median over rounds, and the ways take turns within a round.
"""

import argparse
import json
import statistics
import threading
import time
import urllib.request


def ask(url: str, model: str, tokens: int) -> float:
    """Seconds until the first token of one answer; returns when it is complete."""
    body = json.dumps({
        "model": model, "stream": True, "temperature": 0, "max_tokens": tokens, "ignore_eos": True,
        "messages": [{"role": "user", "content": "Tell me a story about a house by the sea."}]})
    request = urllib.request.Request(f"{url}/chat/completions", body.encode(),
                                     {"Content-Type": "application/json"})
    started_s, first_s = time.perf_counter(), 0.0
    with urllib.request.urlopen(request, timeout=600) as response:
        for line in response:
            if not first_s and b'"content": "' in line and b'"content": ""' not in line:
                first_s = time.perf_counter() - started_s
    return first_s


def at_once(url: str, models: list[str], tokens: int) -> list[float]:
    firsts = [0.0] * len(models)

    def one(i: int) -> None:
        firsts[i] = ask(url, models[i], tokens)

    threads = [threading.Thread(target=one, args=(i,)) for i in range(len(models))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return firsts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("--models", required=True, help="two or more names with commas between")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    models = options.models.split(",")
    first, pair, four = models[0], models[:2], (models * 4)[:4]
    ways = {
        f"1 answer ({first})": [[first]],
        f"2 answers of {first}, one after the other": [[first], [first]],
        f"2 answers of {first}, at once": [[first] * 2],
        f"2 adapters ({', '.join(pair)}), one after the other": [[name] for name in pair],
        f"2 adapters ({', '.join(pair)}), at once": [pair],
        f"{len(models)} adapters, 4 answers at once": [four],
    }
    at_once(options.url, [first], 8)  # the first answer of a process is slow
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, steps in ways.items():
            started_s = time.perf_counter()
            firsts = [value for step in steps for value in at_once(options.url, step,
                                                                   options.tokens)]
            times[name].append((time.perf_counter() - started_s, max(firsts)))
    for name, values in times.items():
        total_s = statistics.median(total for total, _ in values)
        answers = sum(map(len, ways[name]))
        print(f"{name:<52} {total_s:6.2f} s  {answers * options.tokens / total_s:6.1f} tokens/s  "
              f"first token after {statistics.median(f for _, f in values):.2f} s")


if __name__ == "__main__":
    main()
