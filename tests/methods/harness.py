"""One method on one base: what it is asked to do, and what it must not do.

Everything goes through lorafit's own functions: the adapter is added, trained, kept in checkpoints,
resumed, loaded, merged and exported as in a run, in this process and on the embedded base.
"""

import copy
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lorafit.data.batches import Batch
from lorafit.model.adapters.add import add_adapter
from lorafit.model.adapters.files import (
    rest_of_state,
    restore_adapter,
    save_adapter,
    trained_state,
)
from lorafit.model.adapters.float32 import plain_name
from lorafit.model.adapters.step_rule import StepRule, step_rule
from lorafit.model.base import TINY, load_base, load_tokenizer
from lorafit.model.loss import IGNORED, SummedLoss
from lorafit.model.targets import unwrap
from lorafit.recipe.adapter import Adapter
from lorafit.recipe.schema import Model, Training
from lorafit.run_dir import RunDir
from lorafit.train.checkpoint import Progress, load_checkpoint, save_checkpoint, whole_state
from lorafit.train.optimizer import build_optimizer
from lorafit.train.step import train_step
from lorafit.train.strategy.strategy import ALONE

STEPS = 4
STOP = 2  # a checkpoint is committed after this step, and a second run goes on from it
PLAIN = ("float32", "bfloat16", "float16")
QUANTISED = ("nf4", "fp4", "int8")
KINDS = (*PLAIN, *QUANTISED)

# Where 1e-2 is no learning rate at which four steps lead down.
RATES = {"c3a": 3e-2, "cartridge": 0.1, "delora": 3e-3, "fourierft": 3e-2, "full": 1e-3,
         "gralora": 1e-3, "hra": 5e-2, "llama_adapter": 0.3, "miss": 3e-3, "osf": 1e-3,
         "prefix_tuning": 0.1, "prompt_tuning": 0.1, "pvera": 3e-3, "randlora": 1e-3,
         "unilora": 0.3, "waveft": 1e-3}
# Methods whose start takes seconds for each layer are put on the top layer only.
SLOW = ("adamss", "boft", "frod", "hra", "tinylora", "waveft")


def section_of(method: str, **keys: Any) -> Adapter:
    """The smallest recipe section of a method that trains something."""
    options = dict(keys.pop("options", {}))
    if method == "trainable_tokens":
        options.setdefault("token_indices", batches()[0].input_ids[0].unique()[-6:].tolist())
    if method in SLOW:
        keys.setdefault("layers", "last:1")
    return Adapter.model_validate({"method": method, "options": options, **keys})


def base(kind: str = "float32", path: str = "tiny") -> Any:
    """A fresh base in one of KINDS. Those that are not quantised are copies of one in memory."""
    if kind in PLAIN:
        return copy.deepcopy(_loaded(kind, path))
    return _load(kind, path)


@cache
def _loaded(kind: str, path: str) -> Any:
    return _load(kind, path)


def _load(kind: str, path: str) -> Any:
    stored, dtype = ("none", kind) if kind in PLAIN else (kind, "float32")
    model = load_base(Model(base=path, quantization=stored), dtype, "eager", torch.device("cpu"))
    model.config.use_cache = False
    return model


@cache
def batches() -> tuple[Batch, ...]:
    """One step's micro-batches: two padded ones of two sentences each."""
    tokenizer = load_tokenizer(Model(base="tiny"))
    pairs = (("Two and two are four.", "A bird sat on the roof of the old house and sang."),
             ("The name of the ship is Marigold.", "Seven red apples lay in the basket."))
    return tuple(_batch([tokenizer(text)["input_ids"] for text in pair]) for pair in pairs)


def _batch(rows: list[list[int]]) -> Batch:
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    labels = ids.masked_fill(mask == 0, IGNORED)
    labels[:, :2] = IGNORED
    return Batch(ids, labels, mask, tokens=int(mask.sum()))


@dataclass
class Trainee:
    """An adapter in training, with all that a run keeps of it."""

    adapted: Any
    optimizer: Any
    rule: StepRule | None
    rate: float
    step: int = 0
    losses: list[float] = field(default_factory=list)

    def train(self, until: int) -> "Trainee":
        """Steps up to number `until`; the losses before each are kept."""
        module = SummedLoss(self.adapted)
        self.adapted.train()
        while self.step < until:
            result = train_step(ALONE, module, self.optimizer, batches(), step=self.step,
                                learning_rate=self.rate, seed=0, max_grad_norm=1.0,
                                rule=self.rule)
            self.losses.append(result.loss)
            self.step += 1
        return self

    def everything(self) -> dict[str, Tensor]:
        """All that training changes: weights, in the adapter's file or not, and the rule's."""
        rest = {f"rest/{name}": tensor for name, tensor in rest_of_state(self.adapted).items()}
        rule = {} if self.rule is None else self.rule.state()
        return {name: tensor.clone() for name, tensor in
                {**trained_state(self.adapted), **rest, **rule}.items()}


def trainee(section: Adapter, kind: str = "float32", steps: int = STEPS,
            path: str = "tiny", rate: float | None = None) -> Trainee:
    """A fresh base with a fresh adapter and optimizer."""
    adapted = add_adapter(base(kind, path), section, 0, path if path != "tiny" else str(TINY),
                          total_steps=steps)
    optimizer = build_optimizer(adapted.named_parameters(), Training(), torch.device("cpu"))
    return Trainee(adapted, optimizer, step_rule(adapted),
                   rate or RATES.get(section.method, 1e-2))


def commit(it: Trainee, folder: Path) -> Path:
    run = RunDir(folder)
    return save_checkpoint(run, it.adapted, whole_state(it.optimizer), Progress(step=it.step), 9,
                           it.rule)


def resumed(section: Adapter, checkpoint: Path, kind: str = "float32", steps: int = STEPS,
            path: str = "tiny", rate: float | None = None) -> Trainee:
    """What a new process makes of a checkpoint."""
    it = trainee(section, kind, steps, path, rate)
    restore_adapter(it.adapted, checkpoint)
    it.step = load_checkpoint(checkpoint, it.optimizer, it.rule).step
    return it


@torch.no_grad()
def logits(model: Any) -> Tensor:
    """Logits of all real positions of all batches, one after the other, in evaluation mode."""
    was = model.training
    model.eval()
    found = []
    for batch in batches():
        out = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask,
                    use_cache=False).logits
        out = out[:, out.shape[1] - batch.input_ids.shape[1]:]  # behind virtual tokens
        found.append(out[batch.attention_mask.bool()].float())
    model.train(was)
    return torch.cat(found)


@torch.no_grad()
def loss(model: Any) -> float:
    """Mean loss over all batches, as training computes it but in evaluation mode."""
    was = model.training
    model.eval()
    module = SummedLoss(model)
    total = sum(float(module(**batch.inputs)) for batch in batches())
    model.train(was)
    return total / sum(batch.supervised_tokens for batch in batches())


def relative(other: Tensor, reference: Tensor) -> float:
    """‖Δ‖ / ‖reference‖."""
    return float((other - reference).norm() / reference.norm())


def base_weights(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer of a base without an adapter, by its name."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def changed(before: dict[str, Tensor], adapted: Any) -> set[str]:
    """Names of the base's tensors that are no longer what they were, or are gone."""
    now: dict[str, Tensor] = {}
    for name, tensor in unwrap(adapted).state_dict().items():
        plain = ".".join(part for part in plain_name(name).split(".")
                         if part not in ("base_layer", "original_module", "base"))
        plain = plain.replace(".self_attn.model.", ".self_attn.")
        if plain in before:
            now.setdefault(plain, tensor)
    return {name for name, tensor in before.items()
            if name not in now or not torch.equal(tensor, now[name])}


def saved(it: Trainee, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_adapter(folder, it.adapted)
    return folder



@cache
def dequantised(kind: str) -> Any:
    """A float32 base that holds the weights that a quantised one stands for."""
    import bitsandbytes as bnb

    stored, plain = base(kind), base("float32")
    for name, module in stored.named_modules():
        if isinstance(module, bnb.nn.Linear4bit):
            weight = bnb.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
        elif isinstance(module, bnb.nn.Linear8bitLt):
            weight = module.weight.data.float() * module.weight.SCB[:, None] / 127
        else:
            continue
        plain.get_submodule(name).weight.data.copy_(weight)
    return plain


def copied(model: Any) -> Any:
    return copy.deepcopy(model)


def losses_on(model: Any, section: Adapter, steps: int) -> list[float]:
    """The losses before each step of training an adapter on a base."""
    adapted = add_adapter(model, section, 0, str(TINY), total_steps=steps)
    optimizer = build_optimizer(adapted.named_parameters(), Training(), torch.device("cpu"))
    rate = RATES.get(section.method, 1e-2)
    return Trainee(adapted, optimizer, step_rule(adapted), rate).train(steps).losses
