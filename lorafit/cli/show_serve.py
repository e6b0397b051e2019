"""What `serve` prints: the command of an engine, or where the small server listens."""

import shlex
from typing import Any

from lorafit.cli.show import console


def launch(name: str, start: Any, api_key: str | None, *, dry: bool) -> None:
    """The command line of an engine, ready to be pasted; keys left out."""
    words = [f"{key}=…" for key in start.environment]
    words += ["…" if api_key is not None and word == api_key else shlex.quote(word)
              for word in start.command]
    console.print(f"engine    {name}")
    console.print(f"command   {' '.join(words)}", markup=False)
    for remark in start.remarks:
        console.print(f"note      {remark}", markup=False)
    if dry:
        console.print("nothing was started or written (--dry-run)")


def small(lineup: Any, server: Any | None) -> None:
    """The small server: what it is not, where it listens, who can be asked."""
    console.print("engine    transformers: for trying, not for production; no other engine is used")
    if server is None:
        names = ", ".join([lineup.base_name, *lineup.adapters])
        console.print(f"models    {names}", markup=False)
        console.print("nothing was started or written (--dry-run)")
        return
    for name, source in [(lineup.base_name, None), *lineup.adapters.items()]:
        what = "the base" if source is None else source.directory
        console.print(f"model     {name}: {what}", markup=False)
    if not server.may_load:
        console.print(
            "note      whoever reaches this address can ask: --api-key-env asks for a key")
    first = next(iter(lineup.adapters))
    console.print(f"serving   {server.url}/v1", markup=False)
    console.print("next      curl " + server.url + "/v1/chat/completions -H 'Content-Type: "
                  f"application/json' -d '{{\"model\": \"{first}\", \"messages\": [{{\"role\": "
                  "\"user\", \"content\": \"…\"}]}'", markup=False)
    console.print(f"          lorafit chat --endpoint {server.url}/v1", markup=False)
