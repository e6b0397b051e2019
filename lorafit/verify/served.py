"""A server that has an adapter, against the trainer's own model.

Three things go wrong when an adapter is served: the server loads it and does not apply it, it
builds another prompt than training did, or it computes something else. They are told apart by
asking with training's own token ids, in chat, and the base beside the adapter.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lorafit.errors import UserError
from lorafit.export.delta.held_out import Rows, kept_rows
from lorafit.export.verify import logits_of
from lorafit.model.generate import end_tokens
from lorafit.model.trained import AdapterSource
from lorafit.verify.endpoint import BuiltPrompt, Endpoint, Reply, Served
from lorafit.verify.figures import NO_EFFECT, ROUNDED, Compared, Figure, Verification
from lorafit.verify.hearing import AskedOf, Heard, hear
from lorafit.verify.measure import Answer, Divergence, diverging, greedy
from lorafit.verify.prompts import Prompt, prompts_of_rows, prompts_of_run
from lorafit.verify.references import Reference, references_of

_TEMPLATE = "prompt from the chat template"
_SHOWN = 4  # tokens around a difference
_LOGPROB_ROWS = 8

Say = Callable[[str], None]


@dataclass(frozen=True)
class _Trained:
    """What the trainer's model answers to each prompt, without and with the adapter, and the
    log-probabilities of some rows' tokens."""

    label: str
    base: list[Answer]
    adapted: list[Answer]
    logprobs: list[np.ndarray]


def verify_served(endpoint: Endpoint, source: AdapterSource, asked: AskedOf,
                  say: Say = lambda text: None) -> Verification:
    """Compare what a server answers with what the trainer's model does.

    UserError when the server cannot be asked or does not know the name.
    """
    base_name, remarks = _names(endpoint, asked)
    rows = kept_rows(source)
    prompts, problem = _prompts(source, rows, asked.prompts)
    if not prompts:
        raise UserError("no row has a prompt and an answer, so there is nothing to ask",
                        str(source.directory), "verify the artifact's files instead")
    remarks += problem
    some = Rows(rows.what, rows.ids[:_LOGPROB_ROWS], rows.supervised[:_LOGPROB_ROWS])
    say(f"asking {endpoint.url} for {asked.name}")
    heard = hear(endpoint, asked, base_name, prompts, some)
    remarks += heard.remarks
    compared = []
    with ExitStack() as stack:
        references, missing = references_of(source, stack)
        for reference in reversed(references):  # servers have the full-precision base
            say(f"the trainer's model: {reference.label}")
            trained = _trained(reference, prompts, some, asked.tokens)
            compared.append(_compared(source, asked, prompts, some, heard, trained,
                                      judged=reference is references[-1], remarks=remarks))
    return Verification(
        f"{asked.name} at {endpoint.url}",
        f"{len(prompts)} prompts of the run, answered with up to {asked.tokens} tokens",
        compared, list(dict.fromkeys(remarks + missing)), _remedy(compared, remarks))


def _remedy(compared: list[Compared], remarks: list[str]) -> str:
    failed = {figure.name for each in compared for figure in each.figures
              if figure.passed is False}
    if any(remark.startswith(NO_EFFECT) for remark in remarks):
        return ("start the server with adapters enabled, load this one, and ask by its name; then "
                "look at its log for layers that it skipped")
    if failed == {_TEMPLATE}:
        return ("give the server the template of training, chat_template.jinja beside the exported "
                "weights (vLLM: --chat-template)")
    return "do not rely on the server's answers; verify the artifact's files first"


def _names(endpoint: Endpoint, asked: AskedOf) -> tuple[str | None, list[str]]:
    """The base's name on the server. UserError for a name that it does not know."""
    known = {served.name: served for served in endpoint.models()}
    for name in filter(None, (asked.name, asked.base_name)):
        if name not in known:
            raise UserError(f"the server has no model {name!r}", endpoint.url,
                            f"it has {', '.join(known) or 'none'}")
    base_name = asked.base_name or _base_of(known, asked.name)
    if base_name == asked.name:
        raise UserError("is the name of the base and of the adapter", f"--model {asked.name}",
                        "give the adapter's with --model and the base's with --base-name")
    if base_name is None:
        return None, ["the base was not asked beside it (--base-name NAME); the trainer's base "
                      "stands in for it"]
    return base_name, []


def _base_of(known: dict[str, Served], name: str) -> str | None:
    """The parent that vLLM names, if it is served by that name, or the only other model."""
    parent = known[name].parent
    if parent in known and parent != name:
        return parent
    others = [each for each in known.values() if each.name != name and each.parent is None]
    return others[0].name if len(others) == 1 else None


def _prompts(source: AdapterSource, rows: Rows, count: int) -> tuple[list[Prompt], list[str]]:
    try:
        return prompts_of_run(source, count), []
    except UserError as error:
        return prompts_of_rows(rows, count), [
            "the server's chat template was not compared, because the run's rows cannot be read: "
            f"{error.problems[0].what}"]


@torch.inference_mode()
def _trained(reference: Reference, prompts: list[Prompt], rows: Rows, tokens: int) -> _Trained:
    model = reference.base()
    ends = end_tokens(model, reference.tokenizer)
    base = [_without(greedy(model, prompt.ids, tokens, ends), ends) for prompt in prompts]
    model = reference.adapt(model)
    adapted = [_without(greedy(model, prompt.ids, tokens, ends), ends) for prompt in prompts]
    logprobs = []
    for ids in rows.ids:
        said = torch.log_softmax(logits_of(model, [ids])[0][-len(ids):], -1)[:-1]
        targets = torch.from_numpy(ids[1:].astype(np.int64))[:, None]
        logprobs.append(said.gather(-1, targets)[:, 0].numpy())
    return _Trained(reference.label, base, adapted, logprobs)


def _without(answer: Answer, ends: Sequence[int]) -> Answer:
    """An answer without the token that ends it, which few servers return. Its logits stay."""
    ids = answer.ids[:-1] if answer.ids and answer.ids[-1] in ends else answer.ids
    return Answer(ids, answer.logits)


def _compared(source: AdapterSource, asked: AskedOf, prompts: list[Prompt], rows: Rows,
              heard: Heard, trained: _Trained, *, judged: bool, remarks: list[str]) -> Compared:
    tokenizer = source.tokenizer()
    limits = ROUNDED["bfloat16"]  # what servers compute in, unless told otherwise
    tie = (limits.tie if asked.tie is None else asked.tie) if judged else None
    told: list[Figure] = []
    facts: dict[str, Any] = {"prompts": len(prompts)}
    chats = [number for number, prompt in enumerate(prompts) if prompt.messages]
    if chats and judged:
        told.append(_template(tokenizer, [prompts[number] for number in chats], heard.built,
                              remarks))
    ways = [("answers to training's own token ids", heard.completed, list(range(len(prompts)))),
            ("answers in chat", heard.chatted, chats)]
    for name, replies, numbers in ways:
        if replies is not None:
            figure, equal = _answers(name, tokenizer, [trained.adapted[n] for n in numbers],
                                     replies, tie)
            told.append(figure)
            facts[name] = equal
    if heard.logprobs is not None:
        told.append(_logprobs(rows, heard.logprobs, trained.logprobs,
                              limits.logprob if judged else None))
    if judged:
        told.append(_effect(tokenizer, heard, trained, chats, remarks))
    return Compared(f"{trained.label} with the run's adapter", told, facts)


def _template(tokenizer: Any, prompts: list[Prompt], built: list[BuiltPrompt | None],
              remarks: list[str]) -> Figure:
    """Whether the server builds training's prompts, and where the first one differs."""
    known = [(number, prompt, each) for number, (prompt, each)
             in enumerate(zip(prompts, built, strict=True)) if each is not None]
    if not known:
        return Figure(_TEMPLATE, "not known: the server tells neither its tokens nor their number")
    evidence = known[0][2].evidence
    wrong = [(number, prompt, each) for number, prompt, each in known
             if (each.ids != prompt.ids if each.ids is not None
                 else each.tokens != len(prompt.ids))]
    by = "token by token" if known[0][2].ids is not None else "in number of tokens"
    value = f"{len(known) - len(wrong)} of {len(known)} as in training, {by} (by {evidence})"
    if wrong:
        remarks.append(_first_difference(tokenizer, *wrong[0]))
    return Figure(_TEMPLATE, value, "all", not wrong)


def _first_difference(tokenizer: Any, number: int, prompt: Prompt, built: BuiltPrompt) -> str:
    if built.ids is None:
        return (f"prompt {number + 1}: training has {len(prompt.ids)} tokens, the server "
                f"{built.tokens}: it has another chat template")
    at = next((i for i, (a, b) in enumerate(zip(prompt.ids, built.ids, strict=False)) if a != b),
              min(len(prompt.ids), len(built.ids)))

    def around(ids: list[int]) -> str:
        before = tokenizer.decode(ids[max(0, at - _SHOWN):at])
        there = tokenizer.decode(ids[at:at + 1]) if at < len(ids) else None
        return (f"{before!r}, then {there!r} ({ids[at]})" if there is not None
                else f"{before!r}, then its end")

    return (f"prompt {number + 1} differs from token {at + 1} on: training has "
            f"{around(prompt.ids)}; the server {around(built.ids)}")


def _answers(name: str, tokenizer: Any, wanted: list[Answer], replies: list[Reply],
             tie: float | None) -> tuple[Figure, int]:
    found = [_divergence(tokenizer, number, answer, reply)
             for number, (answer, reply) in enumerate(zip(wanted, replies, strict=True))]
    left = [each for each in found if each is not None]
    by = "token ids" if all(reply.ids is not None for reply in replies) else "text"
    value = f"{len(found) - len(left)} of {len(found)} as the trainer's, by {by}"
    worst = max((each.margin_nats for each in left), default=0.0)
    if left:
        first = max(left, key=lambda each: each.margin_nats)
        value += f"; prompt {first.prompt + 1} leaves after {first.token} tokens" + (
            "" if first.margin_nats == float("inf") else
            f", where they are {first.margin_nats:.1e} nats apart")
    if tie is None:
        return Figure(name, value), len(found) - len(left)
    limit = f"equal, or at most {tie:.0e} nats apart" if tie else "equal"
    return Figure(name, value, limit, worst <= tie), len(found) - len(left)


def _divergence(tokenizer: Any, number: int, answer: Answer, reply: Reply) -> Divergence | None:
    """Where a reply leaves an answer. By text where there are no ids: its tokens are then those
    that the tokenizer makes of it, which may differ from the ones that were generated."""
    special = set(tokenizer.all_special_ids)
    if reply.ids is not None:
        ids = list(reply.ids)
        while ids and ids[-1] in special and len(ids) > len(answer.ids):
            ids.pop()
        return diverging(number, answer.ids, ids, answer.logits)
    said = tokenizer.decode(answer.ids, skip_special_tokens=True)
    if said.strip() == reply.text.strip():
        return None
    ids = tokenizer(reply.text, add_special_tokens=False)["input_ids"]
    return diverging(number, answer.ids, ids, answer.logits) or \
        Divergence(number, len(answer.ids), float("inf"))


def _logprobs(rows: Rows, heard: list[np.ndarray], trained: list[np.ndarray],
              limit: float | None) -> Figure:
    apart = np.concatenate([
        np.abs(theirs - mine)[supervised[1:]]
        for theirs, mine, supervised in zip(heard, trained, rows.supervised, strict=False)])
    mean = float(apart.mean()) if len(apart) else 0.0
    return Figure(
        "log-probabilities of held-out answers",
        f"{mean:.2e} nats apart on average, {float(apart.max(initial=0.0)):.2e} at most, over "
        f"{len(apart):,} tokens",
        "" if limit is None else f"at most {limit:.0e} on average",
        None if limit is None else mean <= limit)


def _effect(tokenizer: Any, heard: Heard, trained: _Trained, chats: list[int],
            remarks: list[str]) -> Figure:
    """Whether the adapter changes what the server says, as it changes what the trainer's says."""
    name = "effect of the adapter"
    changed = [number for number, (base, adapted)
               in enumerate(zip(trained.base, trained.adapted, strict=True))
               if base.ids != adapted.ids]
    if not changed:
        return Figure(name, "the trainer's own answers to these prompts are the base's too, so "
                      "this does not show it")
    if heard.completed is not None and heard.base_completed is not None:
        there = [number for number in changed
                 if _said(heard.completed[number]) != _said(heard.base_completed[number])]
        whose = "of base and adapter"
    else:
        replies = dict(enumerate(heard.completed)) if heard.completed is not None else \
            dict(zip(chats, heard.chatted or [], strict=True))
        changed = [number for number in changed if number in replies]
        there = [number for number in changed if _divergence(
            tokenizer, number, trained.base[number], replies[number]) is not None]
        whose = "of the trainer's base and the server's adapter"
    value = f"{len(there)} of {len(changed)} answers that training changed differ there too"
    if changed and not there:
        remarks.insert(0, f"{NO_EFFECT}: the answers {whose} are equal on all {len(changed)} "
                       "prompts where training changed them: the server loaded the adapter, if at "
                       "all, without applying it")
    return Figure(name, value, "at least one", bool(there) or not changed)


def _said(reply: Reply) -> Any:
    return tuple(reply.ids) if reply.ids is not None else reply.text
