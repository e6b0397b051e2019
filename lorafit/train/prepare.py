"""What is known of a run before any weight is loaded: rows as tokens, and everything decided."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from lorafit.data.batches import collate
from lorafit.data.dataset import Report, TokenisedData, read_data, read_held_out, ready
from lorafit.data.feed import EpochFeed, Feed
from lorafit.data.packing import Layout, split_rows
from lorafit.data.stream import StreamFeed
from lorafit.data.stream_blocks import SharedBlocks
from lorafit.errors import UserError
from lorafit.model import base as bases
from lorafit.model.adapters.add import refuse_misfit
from lorafit.model.adapters.starts import Samples
from lorafit.model.context import refuse_heads, refuse_layout
from lorafit.model.device import find_device
from lorafit.model.offload import refuse_offloading
from lorafit.model.parts import why_whole
from lorafit.model.stored import refuse_misfit as refuse_misfit_on_stored
from lorafit.model.stored import stored_as
from lorafit.model.targets import resolve_targets
from lorafit.model.weight_bytes import weight_bytes
from lorafit.recipe import auto
from lorafit.recipe.auto import Decision
from lorafit.recipe.schema import Recipe
from lorafit.train.loop import Plan


@dataclass(frozen=True)
class Prepared:
    """What is known before any weight is loaded. `check` stops here; `train` goes on.

    base_bytes: of the base's weights as they are held. why_whole: why the base cannot be cut up
    among ranks; None where it can.
    """

    tokenizer: Any
    config: Any
    device: torch.device
    feed: Feed
    train: Report
    held_out: TokenisedData | None
    decisions: list[Decision]
    plan: Plan
    remarks: list[str]
    longest_tokens: int
    base_bytes: int
    why_whole: str | None

    def decided(self, key: str) -> Any:
        return self.decision(key).value

    def decision(self, key: str) -> Decision:
        return next(decision for decision in self.decisions if decision.key == key)

    def laid_out(self, batching: Decision, micro: Decision) -> "Prepared":
        """The same with another layout, where the loaded model asked for one."""
        changed = {decision.key: decision for decision in (batching, micro)}
        return replace(self, plan=replace(self.plan, micro_batch_size=micro.value),
                       decisions=[changed.get(d.key, d) for d in self.decisions])


def prepare(recipe: Recipe, shares: int, *, slices: int = 1,
            feed_state: dict[str, Any] | None = None, shared: SharedBlocks | None = None,
            watch: Callable[[str, int], None] = lambda source, rows: None) -> Prepared:
    """Read and tokenise the data and decide everything that is left open.

    Micro-batches are dealt to `shares` ranks, or groups of `slices` ranks that share the tokens of
    each row. `feed_state` is where a resumed run's stream goes on, `shared` where its blocks lie;
    `watch` is told how many rows of a source are tokenised. UserError for whatever is wrong with
    the data, the base's configuration or the adapter.
    """
    training, data = recipe.training, recipe.data
    config = bases.load_config(recipe.model)
    if slices > 1:
        refuse_heads(config, slices)
    stored = stored_as(config)
    shapes = bases.meta_model(config, trust_remote_code=recipe.model.trust_remote_code)
    refuse_misfit_on_stored(recipe.adapter, stored, shapes)
    packed = (stored.label if stored is not None and not stored.unpacked
              else recipe.model.quantization)
    targets = resolve_targets(shapes, recipe.adapter, packed)
    remarks = list(targets.remarks)
    refuse_misfit(shapes, recipe.adapter)
    device, facts = find_device()
    refuse_offloading(training.activation_offloading, device, shapes)
    tokenizer = bases.load_tokenizer(recipe.model)
    train_data: TokenisedData | None = None
    if data.streaming:
        checked = read_held_out(data, tokenizer, watch)
        held_out = None if checked is None else ready(checked, data)
        stream = StreamFeed(data, tokenizer, training.seed, training.batch_size, checked,
                            feed_state, shared)
        report, longest = stream.report(), data.max_length_tokens
    else:
        train_data, held_out = read_data(data, tokenizer, training.seed, watch)
        report, longest = train_data.report, train_data.report.longest_tokens
    longest = max(longest, held_out.report.longest_tokens if held_out else 0)
    _refuse_too_long(config, longest)

    text_config = config.get_text_config()
    dtype = auto.dtype(recipe.model.dtype, facts)
    if slices > 1:  # lorafit's own attention, which on a GPU is torch's FlashAttention
        facts = replace(facts, has_flash_attention=False)
    attention = auto.attention(recipe.model.attention, facts, dtype.value,
                               bases.supports_sdpa(config))
    batching = auto.batching(training.batching, attention.value,
                             takes_documents=not recipe.adapter.row.calls_layers
                             and bases.takes_attention_functions(config),
                             keeps_rows_apart=not recipe.adapter.row.why_not_packed)
    rate = auto.learning_rate(training.learning_rate, text_config.model_type,
                              getattr(text_config, "hidden_size", None), recipe.adapter.method)
    if slices > 1:
        refuse_layout(config, slices, attention, batching, longest)
    micro = micro_batch_size(recipe, batching.value, report, longest, shares, config, slices)
    rows: int | None = None
    feed: Feed
    if train_data is None:
        steps, feed = training.steps or 0, stream
    else:
        order = train_data.order(training.seed)
        rows = auto.total_rows(training.epochs, training.steps, training.batch_size,
                               order.rows_per_epoch)
        steps = -(-rows // training.batch_size)
        feed = EpochFeed(train_data, order, training.batch_size, rows)
    eval_every = auto.eval_every(training.eval_every, steps)
    checkpoint_every = auto.checkpoint_every(training.checkpoint_every, eval_every.value)
    decisions = [dtype, attention, rate, batching, micro, eval_every, checkpoint_every]
    if stored is not None:
        decisions.insert(0, stored.decision(dtype.value))
    plan = Plan(rows, steps, micro.value, rate.value, eval_every.value, checkpoint_every.value)
    label = None if stored is None else stored.label
    return Prepared(tokenizer, config, device, feed, report, held_out, decisions, plan, remarks,
                    longest, weight_bytes(shapes, label or recipe.model.quantization, dtype.value),
                    why_whole(shapes, label, recipe.model.quantization))


def micro_batch_size(recipe: Recipe, batching: str, report: Report, longest_tokens: int,
                     shares: int, config: Any, slices: int = 1) -> Decision:
    """How many rows are computed at once, by what a rank computes of each: its slice."""
    _, facts = find_device()
    tokens_a_row = auto.row_tokens(batching, longest_tokens, report.tokens / report.rows_used,
                                   recipe.data.max_length_tokens, facts)
    training, sizes = recipe.training, config.get_text_config()
    return auto.micro_batch_size(training.micro_batch_size, training.batch_size, shares,
                                 -(-tokens_a_row // slices), sizes.vocab_size,
                                 getattr(sizes, "hidden_size", None), facts)


def most_tokens(prepared: Prepared, recipe: Recipe, slices: int = 1) -> int:
    """Tokens that a rank computes of the largest micro-batch that there can be."""
    longest = prepared.longest_tokens
    if recipe.data.streaming or prepared.decided("training.batching") == "packed":
        longest = recipe.data.max_length_tokens
    return -(-prepared.plan.micro_batch_size * longest // slices)


def first_rows(prepared: Prepared, recipe: Recipe) -> Samples:
    """The first rows in the order of training, padded together, for a start that looks at data.

    Which rows, and how many lie together, does not depend on batch size, layout or ranks.
    """
    def batches(together: int) -> list[dict[str, Any]]:
        assert isinstance(prepared.feed, EpochFeed)  # streams are refused with the recipe
        data, order = prepared.feed.data, prepared.feed.order
        rows = min(recipe.adapter.init_rows, order.rows_per_epoch)
        examples = EpochFeed(data, order, rows, rows).step(0)
        parts = split_rows(examples.lengths, Layout("padded", together, 0), 1)
        pad_id = prepared.tokenizer.pad_token_id or 0
        return [collate(examples.tokens, part, Layout("padded", together, 0), pad_id).inputs
                for part in parts]

    return batches


def _refuse_too_long(config: Any, longest_tokens: int) -> None:
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    if limit and longest_tokens > limit:
        raise UserError(
            f"rows of {longest_tokens} tokens are longer than the base's context of {limit}",
            "data.max_length_tokens", f"set it to at most {limit} and choose data.on_long",
        )
