"""Requests in the forms of OpenAI's API, and vLLM's additions to it, as answers that are wanted.

A parameter that is not known, or asks for what is not there, is refused: an answer that leaves it
out silently would not be the one that was asked for.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lorafit.data.examples import BadRow
from lorafit.serve.prompts import Prompts
from lorafit.serve.trial.sampling import Wanted

# Where a request does not say. OpenAI goes on until the context is full; here others wait.
CHAT_TOKENS, COMPLETION_TOKENS = 1024, 16

# What changes nothing: parameters at the value that asks for nothing, or about the account.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,), "best_of": (1,), "echo": (False,), "suffix": ("",), "logit_bias": ({},),
    "response_format": ({"type": "text"},), "tool_choice": ("auto", "none"),
    "parallel_tool_calls": (True, False), "use_beam_search": (False,), "length_penalty": (1, 1.0),
    "min_tokens": (0,), "add_generation_prompt": (True,), "continue_final_message": (False,),
    "chat_template_kwargs": ({},), "return_tokens_as_token_ids": (False,),
    "spaces_between_special_tokens": (True, False),
}
_IGNORED = ("user", "metadata", "store", "request_id", "service_tier", "safety_identifier")


class Refused(Exception):
    """A request that cannot be answered: `status` is HTTP's, `code` is for programs."""

    def __init__(self, message: str, status: int = 400, code: str | None = None) -> None:
        super().__init__(message)
        self.message, self.status, self.code = message, status, code


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class _Answer(_Form):
    """What chats and completions have in common."""

    model: str
    stream: bool = False
    stream_options: dict[str, bool] = {}
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    stop: str | list[str] = []
    stop_token_ids: list[int] = []
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    return_token_ids: bool = False


class ChatForm(_Answer):
    messages: list[Any]
    tools: list[Any] = []
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] = 0
    add_special_tokens: bool = False


class CompletionForm(_Answer):
    prompt: str | list[str] | list[int] | list[list[int]]
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    add_special_tokens: bool = True


class TokenizeForm(_Form):
    model: str | None = None
    prompt: str | None = None
    messages: list[Any] | None = None
    tools: list[Any] = []
    add_special_tokens: bool | None = None
    return_token_strs: bool = False


class DetokenizeForm(_Form):
    model: str | None = None
    tokens: list[int]


class LoadForm(_Form):
    lora_name: str
    lora_path: str
    load_inplace: bool = False


class UnloadForm(_Form):
    lora_name: str
    lora_int_id: int | None = None


Some = TypeVar("Some", bound=_Form)


@dataclass(frozen=True)
class Defaults:
    """What a base's own generation settings say where a request says nothing."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0


@dataclass(frozen=True)
class Model:
    """A name that can be asked: the adapter behind it (None: the base) and how it is asked.

    limit_tokens: longest prompt and answer together.
    """

    adapter: str | None
    prompts: Prompts
    limit_tokens: int
    vocabulary: int


def read(form: type[Some], body: Any) -> Some:
    """A request's body in its form. Refused with every mistake."""
    if not isinstance(body, Mapping):
        raise Refused("the body must be a JSON object")
    values: dict[str, Any] = {}
    for key, value in body.items():
        known = key in form.model_fields
        if value is None or (not known and (key in _IGNORED or _is_neutral(key, value))):
            continue
        if not known and key in _NEUTRAL:
            raise Refused(f"{key}: {value!r} is not offered by this server; leave it out")
        values[key] = value
    try:
        return form.model_validate(values)
    except ValidationError as error:
        raise Refused("; ".join(dict.fromkeys(map(_sentence, error.errors())))) from None


def wanted_by_chat(form: ChatForm, model: Model, defaults: Defaults) -> Wanted:
    prompt = _chat_ids(model, form.messages, form.tools, form.add_special_tokens)
    longest = form.max_completion_tokens or form.max_tokens
    return _wanted(form, model, defaults, prompt, longest, CHAT_TOKENS,
                   form.top_logprobs if form.logprobs else None)


def wanted_by_completion(form: CompletionForm, model: Model, defaults: Defaults) -> list[Wanted]:
    """An answer for each prompt."""
    given: list[Any] = [form.prompt] if isinstance(form.prompt, str) or (
        form.prompt and isinstance(form.prompt[0], int)) else list(form.prompt)
    if not given:
        raise Refused("prompt is empty")
    prompts = [_text_ids(model, each, form.add_special_tokens) if isinstance(each, str) else each
               for each in given]
    return [_wanted(form, model, defaults, ids, form.max_tokens, COMPLETION_TOKENS, form.logprobs)
            for ids in prompts]


def tokenised(form: TokenizeForm, model: Model) -> list[int]:
    """The prompt that the model would be given."""
    if (form.prompt is None) == (form.messages is None):
        raise Refused("send either prompt or messages")
    if form.messages is not None:
        return _chat_ids(model, form.messages, form.tools, bool(form.add_special_tokens))
    return _text_ids(model, form.prompt or "", form.add_special_tokens is not False)


def _chat_ids(model: Model, messages: list[Any], tools: list[Any], special: bool) -> list[int]:
    try:
        text, is_chat = model.prompts.chat_text(messages, tools)
        return model.prompts.text(text, add_special_tokens=special or not is_chat)
    except BadRow as bad:
        raise Refused(f"{bad.what}; {bad.remedy}" if bad.remedy else bad.what) from None


def _text_ids(model: Model, text: str, special: bool) -> list[int]:
    try:
        return model.prompts.text(text, add_special_tokens=special)
    except BadRow as bad:
        raise Refused(bad.what) from None


def _wanted(form: _Answer, model: Model, defaults: Defaults, prompt: list[int],
            longest: int | None, usual: int, logprobs: int | None) -> Wanted:
    room = model.limit_tokens - len(prompt)
    if not prompt:
        raise Refused("the prompt has no tokens")
    if wrong := next((i for i in prompt if not 0 <= i < model.vocabulary), None):
        raise Refused(f"the prompt has the token id {wrong}, and the model has "
                      f"{model.vocabulary} tokens")
    if room < (longest or 1):
        raise Refused(
            f"the model's context is {model.limit_tokens} tokens: the prompt has {len(prompt)}, "
            f"and {longest or 1} more are asked for", code="context_length_exceeded")
    return Wanted(
        model.adapter, tuple(prompt), longest or min(usual, room),
        temperature=_or(form.temperature, defaults.temperature),
        top_p=_or(form.top_p, defaults.top_p),
        top_k=max(0, int(_or(form.top_k, defaults.top_k))), min_p=form.min_p, seed=form.seed,
        repetition_penalty=_or(form.repetition_penalty, defaults.repetition_penalty),
        presence_penalty=form.presence_penalty, frequency_penalty=form.frequency_penalty,
        stop=(form.stop,) if isinstance(form.stop, str) else tuple(form.stop),
        stop_tokens=tuple(form.stop_token_ids), ignore_eos=form.ignore_eos, logprobs=logprobs,
        skip_special_tokens=form.skip_special_tokens, keep_stop=form.include_stop_str_in_output,
    )


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _is_neutral(key: str, value: Any) -> bool:
    return any(type(value) is type(each) and value == each for each in _NEUTRAL.get(key, ()))


def _sentence(problem: Any) -> str:
    """One of pydantic's findings in a few words."""
    path = ".".join(str(part) for part in problem["loc"]
                    if not (isinstance(part, str) and ("[" in part or part in ("str", "int"))))
    said = {"extra_forbidden": "no such parameter here", "missing": "is missing"}
    return f"{path}: {said.get(problem['type'], problem['msg'][:1].lower() + problem['msg'][1:])}"
