"""Ollama's Modelfile: where the weights are, the chat template in Go's language, where to stop.

A chat template is a program; what can be said in a Modelfile is a text before and after each
message. So it is taken apart with marks in place of messages, put together again for several
conversations, and written only if that gives what the template gives.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from lorafit.export.gguf.chat import render

_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Turns:
    """A template as texts around each role's messages.

    opening: at the start where no system message is. before, after: by role. prompt: before an
    answer. strips: it takes away white space around messages, which Ollama's cannot.
    """

    opening: str
    before: dict[str, str]
    after: dict[str, str]
    prompt: str
    strips: bool = False

    def compose(self, messages: list[dict[str, str]], generation: bool = True) -> str:
        first = "" if messages[0]["role"] == "system" else self.opening
        turns = "".join(self.before[each["role"]] + each["content"] + self.after[each["role"]]
                        for each in messages)
        return first + turns + (self.prompt if generation else "")


def take_apart(tokenizer: Any, template: str) -> Turns | None:
    """The template as texts around messages; None where it is more than that."""
    def said(*roles: str, generation: bool = False) -> str | None:
        return render(tokenizer, template, [
            {"role": role, "content": f"⟦{number}⟧"} for number, role in enumerate(roles)],
            generation)

    one, asked = said("user"), said("user", generation=True)
    turn, two = said("user", "assistant"), said("user", "assistant", "user")
    led = said("system", "user")
    if one is None or asked is None or turn is None or two is None:
        return None
    if not asked.startswith(one) or not turn.startswith(one) or not two.startswith(turn):
        return None
    before_two, _, after_user = two[len(turn):].partition("⟦2⟧")
    before_answer, _, after_answer = turn[len(one):].partition("⟦1⟧")
    before_user = before_two
    start = one.partition("⟦0⟧")[0]
    if not start.endswith(before_user):
        return None
    before, after = {"user": before_user, "assistant": before_answer}, {
        "user": after_user, "assistant": after_answer}
    if led is not None and "⟦0⟧" in led and "⟦1⟧" in led:
        before["system"], _, rest = led.partition("⟦0⟧")
        between = rest.partition("⟦1⟧")[0]
        after["system"] = between.removesuffix(before_user)
    turns = Turns(start.removesuffix(before_user), before, after, asked[len(one):])
    for strips in (False, True):
        if _is_whole(tokenizer, template, found := replace(turns, strips=strips)):
            return found
    return None


def _is_whole(tokenizer: Any, template: str, turns: Turns) -> bool:
    """Whether the texts around messages are all that the template does."""
    contents = ("Hello there.", " spaces around \n", "two\n\nlines", "{{ x }} <b>&amp;</b>")
    shapes: list[Sequence[str]] = [
        ("user",), ("user", "assistant", "user"), ("user", "assistant") * 2 + ("user",)]
    if "system" in turns.before:
        shapes += [("system", *shape) for shape in shapes]
    for shift, shape in enumerate(shapes):
        messages = [{"role": role, "content": contents[(number + shift) % len(contents)]}
                    for number, role in enumerate(shape)]
        composed = [{**each, "content": each["content"].strip()} if turns.strips else each
                    for each in messages]
        if render(tokenizer, template, messages) != turns.compose(composed):
            return False
    return True


def modelfile(weights: str, *, adapter: str | None, base: str, tokenizer: Any,
              template: str | None, stops: list[str], adds_bos: bool) -> str:
    """The text of a Modelfile. weights, adapter: files beside it."""
    lines = []
    if adapter:
        lines += [f"# {weights}: the base of this adapter, {base}, as GGUF. Put it here, or name "
                  "the model that", "# Ollama has of it. One that is quantised below 8 bits gives "
                  "other answers than training saw."]
    lines.append(f"FROM ./{weights}")
    if adapter:
        lines.append(f"ADAPTER ./{adapter}")
    turns = None if template is None else take_apart(tokenizer, template)
    if turns is not None and adds_bos and tokenizer.bos_token:
        turns = _without_bos(turns, tokenizer.bos_token)
    if turns is not None and turns.strips:
        lines.append("# The chat template strips white space around messages; send none.")
    if turns is None:
        lines.append("# TEMPLATE: " + (
            "the tokenizer has no chat template" if template is None else
            "the chat template does more than Ollama's can; Ollama takes its own guess from the "
            "GGUF. llama-server runs the template itself"))
    else:
        lines.append(f'TEMPLATE """{go_template(turns)}"""')
    lines += [f"PARAMETER stop {_quoted(stop)}" for stop in stops]
    return "\n".join(lines) + "\n"


def _without_bos(turns: Turns, bos: str) -> Turns:
    """Ollama puts the token there itself where the GGUF says so."""
    before = dict(turns.before)
    if "system" in before:
        before["system"] = before["system"].removeprefix(bos)
    return replace(turns, opening=turns.opening.removeprefix(bos), before=before)


def go_template(turns: Turns) -> str:
    """In the language of Go's text/template, over Ollama's list of messages."""
    opening = turns.opening and (
        '{{ if ne (index .Messages 0).Role "system" }}' + _literal(turns.opening) + "{{ end }}")
    branches = "".join(
        f'{{{{ {"else " if number else ""}if eq .Role "{role}" }}}}'
        f"{_literal(turns.before[role])}{{{{ .Content }}}}{_literal(turns.after[role])}"
        for number, role in enumerate(role for role in _ROLES if role in turns.before))
    return (f"{opening}{{{{ range .Messages }}}}{branches}{{{{ end }}}}{{{{ end }}}}"
            f"{_literal(turns.prompt)}")


def _literal(text: str) -> str:
    """Text that Go's templates and Ollama's quotes leave as it is."""
    return text.replace("{{", '{{ "{{" }}').replace('"""', '{{ "\\"\\"\\"" }}')


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
