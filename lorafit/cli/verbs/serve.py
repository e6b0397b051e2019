"""What the verbs that answer do."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from lorafit.cli import show, show_serve
from lorafit.cli.before import settle_hub_for
from lorafit.errors import Problem, UserError
from lorafit.run_dir import sha256, write_json, write_text


@dataclass(frozen=True)
class Request:
    """The command line of `serve`; `trained` ends with what stood after --."""

    trained: list[str]
    engine: str
    host: str
    port: int
    api_key_env: str | None
    base: str | None
    dtype: str | None
    gguf: Path | None
    work: Path | None
    max_batch: int
    dry_run: bool


def serve(request: Request) -> int:
    named, extra = _split(request.trained)
    _check_dtype(request.dtype)
    key = api_key(request.api_key_env)
    _settle(named, request.base)
    from lorafit.serve.engines import choose
    from lorafit.serve.lineup import gather

    chosen = choose(request.engine, request.gguf is not None)
    lineup = gather(named, request.base, request.dtype)
    if chosen is None:
        return _serve_here(request, lineup, key, extra)
    engine, program = chosen
    with _work_directory(request.work) as work:
        plan = _plan(request, lineup, engine, work, key, extra)
        launch = engine.launch(program, plan)
        show_serve.launch(engine.name, launch, plan.api_key, dry=request.dry_run)
        if request.dry_run:
            return 0
        return _run(launch)


def _serve_here(request: Request, lineup: Any, key: str | None, extra: Sequence[str]) -> int:
    """The small server, until it is interrupted."""
    if extra:
        raise UserError("the small server takes no engine arguments", " ".join(extra),
                        "leave them out, or choose an engine with --engine")
    if request.gguf is not None:
        raise UserError("the base is loaded from safetensors", "--gguf",
                        "leave it out, or use --engine llama.cpp")
    if request.dry_run:
        show_serve.small(lineup, None)
        return 0
    from lorafit.serve.trial.models import Models
    from lorafit.serve.trial.server import TrialServer

    server = TrialServer(request.host, request.port, key)
    with _signals() as received:
        try:
            models = Models(lineup, request.max_batch, show.progress)
            server.run(models, lambda: show_serve.small(lineup, server))
        except KeyboardInterrupt:
            show.progress("stopped")
    return 128 + (received[0] if received else signal.SIGINT)


def _plan(request: Request, lineup: Any, engine: Any, work: Path, key: str | None,
          extra: Sequence[str]) -> Any:
    """What the engine is to serve: everything refused that cannot be, adapters and template
    written unless this is a dry run."""
    from lorafit.export.adapter import export_adapter
    from lorafit.export.formats import FORMATS, format_named
    from lorafit.model.base import resolve_base
    from lorafit.model.device import find_device
    from lorafit.serve.engines.engine import Placed, Plan
    from lorafit.serve.template import template_for_all, without_marks

    if engine.form not in FORMATS:
        raise UserError(f"this lorafit exports nothing that {engine.name} loads", "--engine",
                        "use another engine, or --engine transformers")
    form = format_named(engine.form)
    problems = [Problem(problem.what, f"{name} ({problem.where})" if problem.where else name,
                        problem.remedy)
                for name, source in lineup.adapters.items() for problem in form.refuse(source)]
    if problems:
        raise UserError(problems=[*problems, Problem(
            f"{engine.name} cannot serve these adapters as they are", "--engine",
            "serve them with --engine transformers, or merge them: lorafit merge")])
    template, remarks = template_for_all(lineup.adapters)
    template_file = None
    if template is not None:
        template_file = work / "chat_template.jinja"
        if engine.name == "llama.cpp":
            template = without_marks(template)

    def plan(placed: list[Any]) -> Any:
        model = lineup.model
        return Plan(resolve_base(model.base), lineup.base_name, model.revision, model.dtype,
                    model.quantization, model.trust_remote_code, placed, template_file,
                    request.gguf, request.host, request.port, key,
                    find_device()[0].type != "cuda", list(extra))

    placed = [Placed(name, work / name, _rank(source.config))
              for name, source in lineup.adapters.items()]
    if problems := engine.refuse(plan(placed)):
        raise UserError(problems=problems)
    for remark in remarks:
        show.progress(f"note      {remark}")
    if request.dry_run:
        return plan(placed)
    work.mkdir(parents=True, exist_ok=True)
    if template is not None and template_file is not None:
        write_text(template_file, template)
    for place, source in zip(placed, lineup.adapters.values(), strict=True):
        if _is_there(source, place.directory, form.name):
            show.progress(f"reused    {place.directory}")
            continue
        show.progress(f"exporting {place.name} as {form.name}")
        show.exported(export_adapter(source, place.directory, form))
        write_json(_stamp(place.directory), _identity(source, form.name))
    return plan([Placed(each.name, each.directory, _rank_of_exported(each)) for each in placed])


def _stamp(directory: Path) -> Path:
    return directory.with_name(f"{directory.name}.from.json")


def _identity(source: Any, form: str) -> dict[str, str]:
    """What an exported adapter was made from."""
    from lorafit.model.adapters.files import CONFIG, WEIGHTS

    return {"format": form, "weights": sha256(source.directory / WEIGHTS),
            "config": sha256(source.directory / CONFIG)}


def _is_there(source: Any, directory: Path, form: str) -> bool:
    """Whether a work directory holds the export of these very weights. UserError when it holds
    something else under the name."""
    if not directory.exists():
        return False
    try:
        found = json.loads(_stamp(directory).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if found != _identity(source, form):
        raise UserError("holds another export; nothing was overwritten", str(directory),
                        "remove it, or choose another directory with --work")
    return True


def _rank(config: dict[str, Any]) -> int:
    """The largest rank of an adapter, as its configuration says."""
    return max([int(config.get("r") or config.get("rank") or 1),
                *map(int, (config.get("rank_pattern") or {}).values())])


def _rank_of_exported(place: Any) -> int:
    try:
        return _rank(json.loads((place.directory / "adapter_config.json").read_text("utf-8")))
    except (OSError, ValueError):
        return int(place.rank)


def _run(launch: Any) -> int:
    """Run an engine until it ends; signals go on to it. Its exit code."""
    with _signals() as received:
        process = subprocess.Popen(launch.command, env={**os.environ, **launch.environment})
        while True:
            try:
                code = process.wait()
                break
            except KeyboardInterrupt:
                # A terminal has sent it to the engine as well; a second one is harmless there.
                process.send_signal(received[-1] if received else signal.SIGINT)
    return 128 + received[0] if received else code if code >= 0 else 128 - code


@contextmanager
def _signals() -> Iterator[list[int]]:
    """SIGINT and SIGTERM as KeyboardInterrupt; the list fills with what was received."""
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        received.append(number)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _work_directory(given: Path | None) -> Iterator[Path]:
    if given is not None:
        yield Path(os.path.abspath(given))
        return
    with tempfile.TemporaryDirectory(prefix="lorafit-serve-") as name:
        yield Path(name)


def _split(words: list[str]) -> tuple[list[str], list[str]]:
    """Adapters, and what stood after -- on the command line, which typer leaves among them."""
    extra = sys.argv[sys.argv.index("--") + 1 :] if "--" in sys.argv else []
    named = words[: len(words) - len(extra)] if extra else words
    if not named:
        raise UserError("no adapter is named", "serve", "give a run or an adapter before --")
    return named, extra


def _settle(named: Sequence[str], base: str | None) -> None:
    """Prepare the hub libraries for what the adapters need, before they are imported."""
    from lorafit.serve.names import split_name

    paths = [split_name(text)[1] for text in named]
    settle_hub_for(paths[0], base, *paths[1:])


def _check_dtype(dtype: str | None) -> None:
    if dtype not in (None, "float32", "bfloat16", "float16"):
        raise UserError(f"unknown dtype {dtype!r}", "--dtype", "use float32, bfloat16 or float16")


def api_key(variable: str | None) -> str | None:
    """The key in an environment variable. UserError when it is not set: a server that was meant
    to ask for one must not start without."""
    if variable is None:
        return None
    if not os.environ.get(variable):
        raise UserError(f"the environment variable {variable} is not set", "--api-key-env",
                        f"{variable}=KEY lorafit …")
    return os.environ[variable]


def chat(named: list[str], endpoint: str | None, model: str | None, which: str | None,
         system: str | None, max_new_tokens: int, temperature: float, api_key_env: str | None,
         base: str | None, dtype: str | None) -> int:
    if bool(named) == bool(endpoint):
        raise UserError("name adapters, or a server with --endpoint" if not named
                        else "adapters and --endpoint exclude each other", "chat",
                        "for example: lorafit chat RUN, or --endpoint http://127.0.0.1:8000/v1")
    if endpoint and (base or dtype):
        raise UserError("the server has its base", "--base" if base else "--dtype", "leave it out")
    if not endpoint and (model or api_key_env):
        raise UserError("only goes with --endpoint", "--model" if model else "--api-key-env",
                        "leave it out; --with says who answers")
    if endpoint and not endpoint.startswith(("http://", "https://")):
        raise UserError("is no address", endpoint, "for example http://127.0.0.1:8000/v1")
    _check_dtype(dtype)
    settings = {"temperature": temperature, "max_tokens": max_new_tokens}
    speakers, stop = (_remote(endpoint, api_key(api_key_env)) if endpoint
                      else _local(named, base, dtype))
    from lorafit.serve.chat.loop import talk
    from lorafit.serve.chat.session import Session
    from lorafit.serve.chat.speakers import Trouble

    try:
        session = Session(speakers, system, settings)
        if model or which:
            session.choose(model or which or "")
    except Trouble as trouble:
        stop()
        raise UserError(str(trouble), "--model" if model else "--with" if which else "chat",
                        "") from None
    try:
        return talk(session)
    finally:
        stop()


def _local(named: list[str], base: str | None, dtype: str | None) -> tuple[Any, Any]:
    _settle(named, base)
    from lorafit.serve.chat.local import Local
    from lorafit.serve.lineup import gather
    from lorafit.serve.trial.models import Models

    models = Models(gather(named, base, dtype), max_batch=8)
    return Local(models), models.worker.stop


def _remote(url: str, key: str | None) -> tuple[Any, Any]:
    from lorafit.serve.chat.endpoint import Endpoint
    from lorafit.serve.chat.speakers import Trouble

    try:
        return Endpoint(url, key), lambda: None
    except Trouble as trouble:
        raise UserError(str(trouble), "--endpoint",
                        "check the address (it ends with /v1), and whether it runs") from None
