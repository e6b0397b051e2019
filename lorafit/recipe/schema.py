"""What a recipe may say. Frozen; unknown keys are refused; the text of each field is its help.

The recipe reference in docs/, the JSON schema for editors and the messages of `lorafit check` are
all made from these classes, so a key is described here and nowhere else.
"""

import os
from datetime import date
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from lorafit.recipe.adapter import Adapter
from lorafit.recipe.evaluation import Evaluation
from lorafit.recipe.methods import METHODS, refusal_on
from lorafit.recipe.section import Section

PositiveInt = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
RowFormat = Literal["auto", "chat", "sharegpt", "alpaca", "prompt_completion", "text", "preference",
                    "judged"]
Verdict = Literal["error", "drop", "warn", "allow"]


class Model(Section):
    """The base model and how it is loaded."""

    base: str
    """A directory, a hub id such as `Qwen/Qwen3-0.6B`, or `tiny`, the model that comes with
    lorafit and needs no network."""
    revision: str | None = None
    """Branch, tag or commit of a hub model. The commit really used is written to the run record."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the frozen weights and of the computation. Adapter weights are float32."""
    quantization: Literal["none", "nf4", "fp4", "int8"] = "none"
    """Store the frozen linear layers in 4 or 8 bits (bitsandbytes). Saves memory, not time."""
    double_quantization: bool = True
    """With nf4 and fp4: quantise the quantisation constants too (about 0.4 bit a weight less)."""
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2", "flex_attention"] = "auto"
    """Implementation of attention, in transformers' names."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model repository. Somebody else's program: off unless
    you read it."""

    @field_validator("base")
    @classmethod
    def _usable_base(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("is empty; name a directory, a hub id or tiny")
        return _usable_path(value)


class Columns(Section):
    """Names of the columns in your file, where they differ from the usual ones."""

    messages: str | None = None
    """Column with a list of chat messages."""
    tools: str | None = None
    """Column with the JSON schemas of the tools that the assistant may call."""
    prompt: str | None = None
    """Column with the question or instruction."""
    input: str | None = None
    """Column with additional input (Alpaca's third column)."""
    completion: str | None = None
    """Column with the answer."""
    text: str | None = None
    """Column with plain text, trained as a whole."""
    system: str | None = None
    """Column with a system message for the row."""
    chosen: str | None = None
    """Column with the preferred answer of a pair."""
    rejected: str | None = None
    """Column with the other answer of a pair."""
    label: str | None = None
    """Column that says whether the answer is wanted."""


class Checks(Section):
    """What happens to rows in which something looks wrong: `error` stops before training and
    shows them, `drop` leaves them out, `warn` prints how many there are, `allow` is silent."""

    unusable: Literal["error", "drop"] = "error"
    """The row does not fit its format, or the chat template refuses it."""
    no_supervised_token: Literal["error", "drop"] = "error"
    """Nothing in the row would be trained."""
    empty_answer: Verdict = "error"
    """A turn of the assistant that is trained says nothing."""
    special_tokens: Verdict = "error"
    """The text of a message spells a special token of the tokenizer, so it would become one."""
    foreign_markup: Verdict = "warn"
    """The text holds marks of other chat templates, such as <|im_end|> or [INST], which are no
    special tokens here: a sign that a template was applied before."""
    duplicates: Verdict = "warn"
    """The same row again, but for case and white space. `drop` keeps the first."""
    overlap: Verdict = "error"
    """A training row that is also held out. `drop` leaves it out of the training rows."""
    encoding: Verdict = "warn"
    """Characters that a wrong encoding leaves, such as Ã© for é, U+FFFD, or control characters."""
    language: Verdict = "warn"
    """Written in another script than most rows of the source (fewer than one row in twenty)."""


class Source(Section):
    """Where rows come from, when a path alone does not say it."""

    path: str
    """A file (.jsonl, .json, .csv, .tsv, .parquet, .arrow, .txt, each also .gz, .zst or .xz), a
    pattern such as `data/*.jsonl`, a directory, or a hub data set."""
    split: str | None = None
    """Split of a hub data set; `train` for training and `test` for evaluation if left out."""
    subset: str | None = None
    """Configuration name of a hub data set."""
    revision: str | None = None
    """Branch, tag or commit of a hub data set."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """How often each row is seen in an epoch: 2 twice, 0.5 half of the rows, each epoch other ones.
    With streaming: share of this source, relative to the others'."""
    format: RowFormat | None = None
    """Shape of this source's rows; `data.format` if left out."""
    columns: Columns | None = None
    """Column mapping of this source; `data.columns` if left out."""

    @field_validator("path")
    @classmethod
    def _usable_name(cls, value: str) -> str:
        return _usable_path(value)


def _kind_of_source(value: Any) -> str:
    """Which member of `Sources` a value is meant to be, so that only its mistakes are reported."""
    if isinstance(value, list):
        return "a list"
    return "a mapping" if isinstance(value, dict | Source) else "a path"


_OneSource = Annotated[
    Annotated[str, Tag("a path")] | Annotated[Source, Tag("a mapping")],
    Discriminator(_kind_of_source),
]
Sources = Annotated[
    Annotated[str, Tag("a path")] | Annotated[Source, Tag("a mapping")]
    | Annotated[list[_OneSource], Tag("a list")],
    Discriminator(_kind_of_source),
]


class Data(Section):
    """What the model is trained and evaluated on."""

    train: Sources
    """Training rows: a file, a pattern such as `data/*.jsonl`, a directory or a hub data set, or
    a list of them."""
    eval: Sources | None = None
    """Held-out rows for evaluation, given like `train`."""
    eval_fraction: Fraction = 0.0
    """Hold out this part of the training rows instead (chosen by the seed)."""
    format: RowFormat = "auto"
    """Shape of a row; `auto` decides by the columns and prints why."""
    columns: Columns = Columns()
    """Column mapping."""
    chat_template: str | None = None
    """Used in place of the tokenizer's own chat template: a Jinja file, the name of another
    template of the tokenizer, `chatml`, or the template itself."""
    date: str | None = None
    """Date (YYYY-MM-DD) that templates which print one see; the day on which the run was started
    if left out. A resumed run keeps it."""
    render: Literal["auto", "chat", "plain"] = "auto"
    """How prompts and completions become text: in the chat template, or one after the other.
    `auto` takes the template where the tokenizer has one. Plain text is never wrapped."""
    system: str | None = None
    """System message for rows that bring none."""
    train_on: Literal["assistant", "last", "completion", "all"] = "assistant"
    """Which tokens of a conversation are trained: every turn of the assistant, its last one, its
    turns after the last message of the user, or everything. A message's own weight goes first."""
    train_on_end_of_turn: bool = True
    """Train the token that ends the assistant's turn. Without it the model does not learn to
    stop."""
    max_length_tokens: Annotated[int, Field(ge=2)] = 2048
    """Longest row, in tokens."""
    on_long: Literal["error", "drop", "truncate", "split"] = "error"
    """What happens to a longer row: stop before training, leave it out, cut off its end, or make
    several rows of it. Whatever is chosen is counted, printed and stored."""
    checks: Checks = Checks()
    """What is checked before training, and what a finding leads to."""
    streaming: bool = False
    """Read and tokenise while training goes on, for data that is too large to prepare first. Needs
    `training.steps`; rows are shuffled within blocks of `shuffle_rows`."""
    shuffle_rows: PositiveInt = 4096
    """With streaming: rows that are read and shuffled at a time."""
    workers: PositiveInt | Literal["auto"] = "auto"
    """Processes that render and tokenise; one for each core if left out."""
    max_rows: PositiveInt | None = None
    """Take only the first rows of each source in `train`."""
    max_eval_rows: PositiveInt | None = None
    """Take only the first rows of each source in `eval`, or of those that `eval_fraction` holds
    out."""

    @field_validator("date")
    @classmethod
    def _usable_date(cls, value: str | None) -> str | None:
        try:
            if value is not None:
                date.fromisoformat(value)
        except ValueError:
            raise ValueError(f"{value!r} is no date; write it as 2026-01-31") from None
        return value

    @field_validator("chat_template")
    @classmethod
    def _usable_template(cls, value: str | None) -> str | None:
        return value if value is None or "{" in value else _usable_path(value)

    @field_validator("train", "eval")
    @classmethod
    def _usable_names(cls, value: Any) -> Any:
        if value == []:
            raise ValueError("is empty; name a file")
        if isinstance(value, list):
            return [cls._usable_names(item) for item in value]
        return _usable_path(value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check(self) -> "Data":
        if self.eval is not None and self.eval_fraction > 0:
            raise ValueError("eval and eval_fraction exclude each other; keep one of them")
        if self.streaming and self.eval_fraction > 0:
            raise ValueError("eval_fraction needs all rows before training, so it cannot be "
                             "combined with streaming; give a file in data.eval")
        if self.streaming and self.max_rows is not None:
            raise ValueError("max_rows cannot be combined with streaming; set training.steps")
        held_out = self.eval if isinstance(self.eval, list) else [self.eval]
        if any(isinstance(source, Source) and source.weight != 1 for source in held_out):
            raise ValueError("a held-out row counts once, so a weight has no effect in data.eval; "
                             "leave it out")
        return self


class Training(Section):
    """How long, how fast and how carefully."""

    epochs: Annotated[float, Field(gt=0)] | None = None
    """Passes over the training rows; 1 if neither epochs nor steps is given."""
    steps: PositiveInt | None = None
    """Optimizer steps, instead of epochs."""
    batch_size: PositiveInt = 16
    """Sequences per optimizer step over all devices: the same recipe trains the same on 1 or 8."""
    micro_batch_size: PositiveInt | Literal["auto"] = "auto"
    """Sequences computed at once on one device. Changes memory and speed, not the result."""
    batching: Literal["auto", "padded", "padding_free", "packed"] = "auto"
    """How the sequences of a step are laid out for computing, which changes speed and memory, not
    the result: padded to equal length, end to end in one row without padding, or packed best-fit
    into rows of data.max_length_tokens. Attention never crosses from one sequence to another."""
    learning_rate: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"
    """Peak learning rate of AdamW. `auto`: 10 times full fine-tuning's, adjusted to the width."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Course of the learning rate after warm-up; linear and cosine end at min_learning_rate."""
    warmup: Annotated[float, Field(ge=0)] = 0
    """Steps of linear warm-up; below 1 a fraction of all steps."""
    min_learning_rate: Annotated[float, Field(ge=0)] = 0.0
    """Where linear and cosine schedules end."""
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    """AdamW (fused where the device has it), or bitsandbytes' with 8-bit state."""
    betas: list[Fraction] = Field(default=[0.9, 0.999], min_length=2, max_length=2)
    """AdamW's two decay rates."""
    epsilon: Annotated[float, Field(gt=0)] = 1e-8
    """AdamW's epsilon."""
    lora_plus_ratio: Annotated[float, Field(gt=0)] = 1.0
    """Learning rate of LoRA's B over that of A (LoRA+, arXiv 2402.12354, which advises 16 and a
    smaller learning_rate); learning_rate is A's."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay on every trained weight."""
    max_grad_norm: Annotated[float, Field(gt=0)] | None = 1.0
    """Clip the gradient to this Euclidean norm; null switches clipping off."""
    skip_nonfinite: Annotated[int, Field(ge=0)] = 0
    """Steps that may be left out because their loss or gradient is not finite; each is told with
    its rows. 0 stops at the first. A weight that is not finite always stops the run."""
    activation_checkpointing: Literal["auto", "none", "selective", "full"] = "auto"
    """What the backward pass computes again instead of finding it kept: nothing (`none`), the
    inner tensors of gated MLPs (`selective`: about half the memory), or whole layers (`full`, also
    `true`: least memory, about a third more time). `auto` keeps what fits into the device."""
    activation_offloading: bool = False
    """Move what layers keep for the backward pass to the host's memory, and back in time. `auto`
    checkpointing is then `full`, so that layers' inputs are all that moves: more takes longer to
    copy than to compute again. On GPUs only, and not yet run on one (docs/performance.md)."""
    eval_every: PositiveInt | None = None
    """Evaluate after every so many steps, and always at the end. Ten times a run if left out."""
    early_stopping: PositiveInt | None = None
    """Stop when so many evaluations in a row brought no new best loss."""
    keep: Literal["best", "last"] = "best"
    """Which weights are the result: of the lowest held-out loss, or of the last step."""
    checkpoint_every: PositiveInt | None = None
    """Commit a checkpoint after every so many steps. At each evaluation if left out."""
    keep_checkpoints: PositiveInt = 2
    """Newest checkpoints kept; the best one is kept besides."""
    sample_prompts: list[str] = Field(default=[])
    """Prompts answered at each evaluation, to see the model change."""
    sample_tokens: PositiveInt = 64
    """Longest sample answer, in tokens."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of everything random: start of A, order of rows, dropout."""

    @field_validator("activation_checkpointing", mode="before")
    @classmethod
    def _on_or_off(cls, value: Any) -> Any:
        return {True: "full", False: "none"}[value] if isinstance(value, bool) else value

    @field_validator("warmup")
    @classmethod
    def _whole_steps(cls, value: float) -> float:
        if value >= 1 and value != int(value):
            raise ValueError("must be a whole number of steps, or a fraction below 1")
        return value

    @model_validator(mode="after")
    def _check(self) -> "Training":
        if self.epochs is not None and self.steps is not None:
            raise ValueError("epochs and steps exclude each other; set one of them to null, for "
                             "example --set training.epochs=null")
        if isinstance(self.micro_batch_size, int) and self.micro_batch_size > self.batch_size:
            raise ValueError(
                f"micro_batch_size {self.micro_batch_size} is larger than batch_size "
                f"{self.batch_size}; lower it, or leave it out"
            )
        if self.learning_rate != "auto" and self.min_learning_rate > self.learning_rate:
            raise ValueError("min_learning_rate is larger than learning_rate")
        return self


class Output(Section):
    """Where the run is kept."""

    dir: str
    """The run directory. One recipe, one run, one directory; an existing run is never
    overwritten."""
    trackers: list[Literal["tensorboard", "wandb", "mlflow", "trackio"]] = Field(default=[])
    """Experiment trackers that receive what metrics.jsonl holds: `tensorboard`, `wandb`, `mlflow`,
    `trackio`. Their packages must be installed."""
    project: Annotated[str, Field(min_length=1)] = "lorafit"
    """What trackers group runs under; the run itself has the name of its directory."""

    @field_validator("dir")
    @classmethod
    def _usable_name(cls, value: str) -> str:
        return _usable_path(value)


class Recipe(Section):
    """One training run."""

    model: Model
    adapter: Adapter = Adapter()
    data: Data
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    output: Output

    @model_validator(mode="after")
    def _check(self) -> "Recipe":
        holds_out = self.data.eval is not None or self.data.eval_fraction > 0
        if self.training.early_stopping is not None and not holds_out:
            raise ValueError(
                "training.early_stopping needs held-out rows; add data.eval or data.eval_fraction"
            )
        if self.data.streaming and self.training.steps is None:
            raise ValueError("data.streaming needs training.steps, because the number of rows is "
                             "not known; for example --set training.steps=1000")
        method, stored = self.adapter.method, self.model.quantization
        if stored != "none" and stored not in METHODS[method].quantized:
            raise ValueError(refusal_on(method, stored))
        if self.adapter.alters_base and self.model.quantization != "none":
            raise ValueError(
                f"adapter.init {self.adapter.init} moves part of the base weights into the "
                f"adapter, which a base in {stored} cannot do exactly; use init: "
                f"{'loftq, ' if stored != 'int8' else ''}eva or default, or quantization: none"
            )
        row = METHODS[method]
        if row.why_not_packed and self.training.batching not in ("auto", "padded"):
            raise ValueError(f"training.batching {self.training.batching} puts several sequences "
                             f"into a row, which {method} cannot do: {row.why_not_packed}; "
                             "use padded")
        if row.why_not_recomputed and self.training.activation_checkpointing == "full":
            raise ValueError(f"training.activation_checkpointing cannot be combined with {method}: "
                             f"{row.why_not_recomputed}; set it to false")
        if self.training.lora_plus_ratio != 1 and method != "lora":
            raise ValueError(f"training.lora_plus_ratio is of LoRA's B matrices, which {method} "
                             "does not have; leave it out")
        if self.training.lora_plus_ratio != 1 and self.adapter.freeze_a:
            raise ValueError("training.lora_plus_ratio is between the rates of A and B, and with "
                             "freeze_a only B is trained; set learning_rate instead")
        if self.adapter.starts_from_data and self.data.streaming:
            raise ValueError(f"adapter.init {self.adapter.init} looks at training rows before the "
                             "first step, which data.streaming cannot give back; use another init")
        if self.adapter.init == "loftq" and self.model.quantization not in ("nf4", "fp4"):
            raise ValueError("adapter.init loftq makes up for what 4 bits lose; set "
                             "model.quantization to nf4 or fp4, or use init: default")
        if self.adapter.bias != "none" and self.model.quantization != "none":
            raise ValueError(
                f"adapter.bias {self.adapter.bias} trains base parameters, which is not "
                f"supported on a base in {self.model.quantization}; use bias: none"
            )
        return self


def _usable_path(value: str) -> str:
    """Refuse what no file system can hold, where the recipe's line is still known."""
    if not value.strip():
        raise ValueError("is empty; name a path")
    if "\0" in value:
        raise ValueError("holds a NUL character, which no path can")
    encoded = os.fsencode(value)
    if len(encoded) > 4000 or any(len(part) > 255 for part in encoded.split(b"/")):
        raise ValueError("is too long for a path (a name holds at most 255 bytes)")
    return value
