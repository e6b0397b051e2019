"""LoRA's starts: what A and B begin with, what the base becomes, what the files are valid on."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from lorafit.errors import UserError
from lorafit.export.adapter import export_adapter
from lorafit.export.merge import merge
from lorafit.export.verify import compare, logits_of
from lorafit.model.adapters.add import add_adapter
from lorafit.model.adapters.facts import describe
from lorafit.model.adapters.files import save_adapter
from lorafit.model.adapters.lora import lora_layers
from lorafit.model.adapters.starts import start_of
from lorafit.model.base import TINY, load_base, load_config, meta_model
from lorafit.model.loss import SummedLoss
from lorafit.model.trained import open_adapter
from lorafit.recipe.adapter import Adapter
from lorafit.recipe.schema import Model, Training
from lorafit.run_dir import RunDir
from lorafit.train.optimizer import build_optimizer

IDS = torch.arange(5, 60)[None]
ALTERING = ["pissa", "pissa_niter_4", "olora", "corda", "lora_ga"]
COMPUTED = [*ALTERING, "eva"]
PATTERNS = {"rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}}


def base(dtype: str = "float32", quantization: str = "none"):
    section = Model(base="tiny", dtype=dtype, quantization=quantization)
    return load_base(section, dtype, "eager", torch.device("cpu"))


def batches(together: int):
    """Sixteen rows of text, the later half of each supervised, padded on the right."""
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    texts = [f"How much is {n} and {n + 1}? The sum of {n} and {n + 1} is {2 * n + 1}."
             + n % 3 * " Yes, I am sure." for n in range(16)]
    rows = [tokenizer(text)["input_ids"] for text in texts]
    for start in range(0, len(rows), together):
        part = rows[start : start + together]
        shape = (len(part), max(map(len, part)))
        ids, labels = torch.zeros(shape, dtype=torch.long), torch.full(shape, -100)
        mask = torch.zeros(shape, dtype=torch.long)
        for j, row in enumerate(part):
            ids[j, : len(row)] = torch.tensor(row)
            mask[j, : len(row)] = 1
            labels[j, len(row) // 2 : len(row)] = torch.tensor(row[len(row) // 2 :])
        yield {"input_ids": ids, "attention_mask": mask, "labels": labels, "position_ids": None,
               "weights": None}


def started(model, **adapter):
    section = Adapter(**{"rank": 4, "alpha": 8, **adapter})
    return add_adapter(model, section, 0, "tiny", samples=batches)


def plain_logits(directory: Path | None, dtype: str = "float32", ids: torch.Tensor = IDS):
    """By transformers and plain peft alone, on the base as it is on disk."""
    from peft import PeftModel

    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=getattr(torch, dtype),
                                                 attn_implementation="eager")
    if directory is not None:
        model = PeftModel.from_pretrained(model, str(directory))
    return logits_of(model.eval(), list(ids.numpy()))


@pytest.fixture
def trained_model(train, monkeypatch):
    """Trains, and gives back the model in the trainer's memory after the last step."""
    from lorafit.train import run as running

    seen = {}
    write = running.write_result

    def keep(run, recipe, adapted, result):
        write(run, recipe, adapted, result)
        seen["model"] = adapted

    monkeypatch.setattr(running, "write_result", keep)

    def work(recipe, **options):
        result = train(recipe, **options)
        return seen["model"].eval(), result

    return work


LEARNS = {"steps": 4, "learning_rate": 2e-3}


@pytest.mark.parametrize("adapter", [
    *({"init": init} for init in COMPUTED),
    *(pytest.param({"init": init, **PATTERNS}, marks=pytest.mark.long) for init in COMPUTED),
    {"init": "orthogonal"},
    {"init": "eva", "dora": True},
    {"init": "eva", "options": {"eva_config": {"rho": 1.0, "use_label_mask": False}}},
    {"init": "corda", "options": {"corda_config": {"corda_method": "kpm"}}},
    {"init": "lora_ga", "options": {"lora_ga_config": {"scale": "gd_scale"}}},
    {"init": "pissa", "freeze_a": True, "layers": "last:2", "dropout": 0.1},
    {"init": "corda", "target_modules": ["q_proj", "down_proj"], "modules_to_save": ["lm_head"]},
], ids=json.dumps)
def test_the_result_is_the_trained_model_on_the_original_base(make_recipe, trained_model, tmp_path,
                                                              adapter):
    """Plain peft on the base as it is on disk, and the merged weights, against the model in the
    trainer's memory."""
    recipe = make_recipe(model={"attention": "eager"}, adapter=adapter, training=LEARNS)
    model, result = trained_model(recipe)
    assert result.progress.best_loss < 0.9 * result.progress.first_eval_loss
    run = RunDir(Path(recipe.output.dir))
    trained = logits_of(model, list(IDS.numpy()))
    loaded = compare(trained, plain_logits(run.adapter))
    assert loaded.relative_rms < 1e-5
    merged = merge(open_adapter(run.path), tmp_path / "merged", "float32")
    assert merged.agreement.relative_rms < 1e-4
    assert compare(trained, plain_logits(None)).relative_rms > 1e-2
    last = run.list_checkpoints()[-1]  # as good as the result
    assert compare(plain_logits(last), plain_logits(run.adapter)).bit_equal


@pytest.mark.parametrize("adapter", [
    *({"init": init} for init in COMPUTED), {"init": "orthogonal"},
    *(pytest.param({"init": init, **PATTERNS}, marks=pytest.mark.long) for init in COMPUTED[3:]),
], ids=json.dumps)
def test_a_run_goes_on_with_the_same_base_and_weights_to_the_bit(make_recipe, trained_model,
                                                                 adapter):
    whole = make_recipe("whole", adapter=adapter)
    expected, _ = trained_model(whole)
    trained_model(make_recipe("part", adapter=adapter, training={"steps": 2}))
    found, _ = trained_model(make_recipe("part", adapter=adapter), resume=True)
    for (name, tensor), (other, again) in zip(expected.state_dict().items(),
                                              found.state_dict().items(), strict=True):
        assert name == other
        assert torch.equal(tensor, again), name
    files = [{file.name: file.read_bytes() for file in RunDir(path).adapter.iterdir()}
             for path in (Path(whole.output.dir), Path(whole.output.dir).with_name("part"))]
    assert files[0] == files[1]


@pytest.mark.parametrize("init", COMPUTED)
def test_a_kept_start_needs_no_data_and_no_decomposition(monkeypatch, tmp_path, init):
    """With every way to compute a start shut, on another number of threads."""
    first = started(base("bfloat16"), init=init)
    save_adapter(tmp_path, first)
    for name in ("svd", "qr", "inv"):
        monkeypatch.setattr(torch.linalg, name, None)
    monkeypatch.setattr(torch, "svd_lowrank", None)
    threads = torch.get_num_threads()
    torch.set_num_threads(2 if threads == 1 else 1)
    try:
        again = add_adapter(base("bfloat16"), Adapter(rank=4, alpha=8, init=init), 0, "tiny",
                            start=tmp_path)
    finally:
        torch.set_num_threads(threads)
    now = again.state_dict()
    assert all(torch.equal(tensor, now[name]) for name, tensor in first.state_dict().items())


@pytest.mark.parametrize("init", [*COMPUTED, "orthogonal"])
def test_a_start_computes_what_the_base_does_and_leaves_random_numbers_alone(init):
    torch.manual_seed(11)
    add_adapter(base(), Adapter(rank=4, alpha=8), 0, "tiny")
    after_default = torch.rand(4)
    torch.manual_seed(11)
    model = started(base(), init=init).eval()
    assert torch.equal(torch.rand(4), after_default)
    assert compare(plain_logits(None), logits_of(model, list(IDS.numpy()))).relative_rms < 1e-5
    twin = started(base(), init=init).state_dict()
    assert all(torch.equal(tensor, twin[name]) for name, tensor in model.state_dict().items())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("init", ALTERING)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_in_16_bits_the_conversion_is_off_by_one_rounding_and_no_more(init, dtype, tmp_path):
    """W − s·B₀A₀ is rounded to the base's type once, which no conversion can undo."""
    model = started(base(dtype), init=init)
    half_step = torch.finfo(getattr(torch, dtype)).eps / 2
    original = base(dtype)
    for name, layer in lora_layers(model):
        weight = original.get_submodule(name.removeprefix("base_model.model.")).weight.double()
        a, b = (getattr(layer, f"lora_{x}")["default"].weight.double() for x in "AB")
        altered = layer.base_layer.weight.double()
        difference = altered + layer.scaling["default"] * b @ a - weight
        assert difference.norm() < 1.01 * half_step * altered.norm(), name
    save_adapter(tmp_path, model)
    trained = logits_of(model.eval(), list(IDS.numpy()))
    assert compare(plain_logits(tmp_path, dtype), trained).relative_rms < 10 * half_step


def test_pissa_takes_the_main_directions_and_olora_the_first_columns():
    original = base()
    for init in ("pissa", "olora"):
        for name, layer in lora_layers(started(base(), init=init, alpha=4)):
            weight = original.get_submodule(name.removeprefix("base_model.model.")).weight
            rest = layer.base_layer.weight
            if init == "pissa":
                tail = torch.linalg.svdvals(weight.double())[4:].detach()
                assert float(rest.double().norm()) == pytest.approx(float(tail.norm()), rel=1e-5)
            else:
                # Gram-Schmidt's first four directions span the first four columns.
                assert float(rest[:, :4].norm()) < 1e-5 * float(weight[:, :4].norm())


def test_corda_keeps_what_matters_for_the_rows():
    """(W − s·B·A)·C leaves the tail of W·C's singular values, C being the rows' covariance."""
    original, inputs = base(), []
    name = "model.layers.1.mlp.down_proj"
    layer = original.get_submodule(name)
    handle = layer.register_forward_hook(
        lambda module, given, output: inputs.append(given[0][0].double()))
    with torch.no_grad():
        for batch in batches(1):
            original(input_ids=batch["input_ids"])
    handle.remove()
    scaled = [x / x.max().abs() for x in inputs]
    covariance = sum(x.T @ x for x in scaled) / len(scaled)
    damped = covariance + 0.01 * covariance.diagonal().mean() * torch.eye(len(covariance))
    model = started(base(), init="corda", target_modules=[name])
    rest = dict(lora_layers(model))[f"base_model.model.{name}"].base_layer.weight.double()
    tail = torch.linalg.svdvals(layer.weight.double() @ damped)[4:]
    assert float((rest @ damped).norm()) == pytest.approx(float(tail.norm()), rel=1e-3)


def test_lora_ga_starts_in_the_gradients_main_directions():
    """A spans directions of the gradient of the mean loss per token, by torch's own backward."""
    name = "model.layers.2.self_attn.o_proj"
    original = base()
    weight = original.get_submodule(name).weight.requires_grad_(True)
    supervised = sum(int((batch["labels"] != -100).sum()) for batch in batches(4))
    loss = sum(SummedLoss(original)(**batch) for batch in batches(4)) / supervised
    loss.backward()
    u, s, vh = torch.linalg.svd(weight.grad.double(), full_matrices=False)
    model = started(base(), init="lora_ga", target_modules=[name])
    a, b = (start_of(model).tensors[f"base_model.model.{name}.lora_{x}.weight"].double()
            for x in "AB")
    assert torch.allclose((a @ vh[:4].T).abs(), torch.eye(4, dtype=torch.double), atol=1e-2)
    stable = weight.shape[0] ** 0.25 / 16**0.5
    assert torch.allclose((u[:, 4:8].T @ b).abs() / (s[4:8] * stable), torch.eye(4).double(),
                          atol=5e-2)


def test_eva_moves_ranks_within_the_budget_and_the_file_says_where(tmp_path):
    model = started(base(), init="eva")
    ranks = {name: layer.r["default"] for name, layer in lora_layers(model)}
    assert sum(ranks.values()) == 4 * 28
    assert len(set(ranks.values())) > 2
    assert 4 < max(ranks.values()) <= 8
    assert {layer.scaling["default"] for _, layer in lora_layers(model)} == {2.0}
    save_adapter(tmp_path, model)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["init_lora_weights"] is True
    assert config["eva_config"] is None
    assert sum(kind.parameters for kind in describe(model).kinds) == sum(
        tensor.numel() for tensor in load_file(tmp_path / "adapter_model.safetensors").values())


@pytest.mark.parametrize("init", [
    pytest.param("eva", marks=pytest.mark.long), "orthogonal", "gaussian"])
@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_starts_that_leave_the_base_alone_work_on_a_quantised_one(
        make_recipe, trained_model, init, quantization):
    recipe = make_recipe(model={"quantization": quantization, "attention": "eager"},
                         adapter={"init": init}, training=LEARNS)
    _, result = trained_model(recipe)
    assert result.progress.best_loss < 0.9 * result.progress.first_eval_loss
    again = export_adapter(open_adapter(Path(recipe.output.dir)),
                           Path(recipe.output.dir) / "exported")
    assert again.agreement.bit_equal
    fresh = started(base("float32", quantization), init=init).eval()
    assert compare(logits_of(base("float32", quantization), list(IDS.numpy())),
                   logits_of(fresh, list(IDS.numpy()))).relative_rms < 1e-5


@pytest.mark.parametrize("layout", [
    {"batching": "padded", "micro_batch_size": 1}, {"batching": "packed", "micro_batch_size": 4},
    {"batching": "padding_free"},
], ids=json.dumps)
@pytest.mark.parametrize("init", ["eva", "corda", "lora_ga"])
def test_rows_are_the_first_of_training_whatever_the_layout(make_recipe, train, init, layout):
    starts = []
    for name, training in (("plain", {}), ("other", {"steps": 1, **layout})):
        recipe = make_recipe(name, adapter={"init": init, "init_rows": 6},
                             training={"steps": 1, **training})
        train(recipe)
        starts.append((Path(recipe.output.dir) / "initial_adapter/adapter_model.safetensors")
                      .read_bytes())
    assert starts[0] == starts[1]


def nf4_run(make_recipe, quantization="nf4", **adapter):
    return make_recipe(model={"quantization": quantization, "attention": "eager"},
                       adapter={"init": "loftq", "rank": 8, "alpha": 32, **adapter},
                       training={"steps": 6, "learning_rate": 2e-3})


@pytest.mark.parametrize("quantization", ["nf4", "fp4"])
def test_loftq_makes_up_for_what_quantisation_loses(quantization):
    """Layer by layer the error that is left is the best possible at the rank; the logits are
    nearer the full base's."""
    stored = base("float32", quantization)
    model = started(stored, init="loftq", rank=8, alpha=32).eval()
    original = base()
    from bitsandbytes.functional import dequantize_4bit

    for name, layer in lora_layers(model):
        held = layer.base_layer.weight
        weight = original.get_submodule(name.removeprefix("base_model.model.")).weight.double()
        lost = weight - dequantize_4bit(held.data, held.quant_state).double()
        a, b = (getattr(layer, f"lora_{x}")["default"].weight.double() for x in "AB")
        left = (lost - layer.scaling["default"] * b @ a).detach()
        assert float(left.norm()) == pytest.approx(
            float(torch.linalg.svdvals(lost)[8:].norm()), rel=1e-4)
    full, ids = plain_logits(None), list(IDS.numpy())
    plain = compare(full, logits_of(base("float32", quantization), ids))
    nearer = compare(full, logits_of(model, ids))
    assert nearer.relative_rms < plain.relative_rms
    assert nearer.mean_kl < 0.9 * plain.mean_kl


@pytest.mark.parametrize("adapter", [{}, PATTERNS], ids=json.dumps)
def test_a_loftq_adapter_is_exact_on_its_base_and_converted_for_the_full_one(
        make_recipe, trained_model, tmp_path, adapter):
    recipe = nf4_run(make_recipe, **adapter)
    model, result = trained_model(recipe)
    assert result.progress.best_loss < 0.9 * result.progress.first_eval_loss
    source, ids = open_adapter(Path(recipe.output.dir)), list(IDS.numpy())
    trained = logits_of(model, ids)
    exported = export_adapter(source, tmp_path / "exported")
    assert exported.agreement.bit_equal
    assert "WRONG on the full" in exported.remark
    assert "nf4" in (tmp_path / "exported" / "VALID_ON.txt").read_text()
    raw = compare(trained, plain_logits(tmp_path / "exported"))
    converted = compare(trained, plain_logits(tmp_path / "exported" / "full_precision"))
    assert converted.mean_kl < raw.mean_kl
    assert converted.relative_rms < raw.relative_rms
    merged = merge(source, tmp_path / "merged", "float32")
    assert merged.agreement.relative_rms < 1e-4
    other = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert compare(plain_logits(tmp_path / "exported" / "full_precision"),
                   logits_of(other.eval(), ids)).relative_rms < 1e-5
    # An adapter without its run cannot be converted, and says so.
    alone = open_adapter(tmp_path / "exported")
    assert alone.model.quantization == "nf4"
    with pytest.raises(UserError, match="valid on the base in nf4 only"):
        merge(alone, tmp_path / "wrong")


def test_loftq_resumes_to_the_same_bytes_without_the_full_base(make_recipe, train, monkeypatch):
    from lorafit.model.adapters import loftq

    whole, files = nf4_run(lambda **s: make_recipe("whole", **s)), []
    train(whole)
    part = whole.model_copy(update={
        "output": whole.output.model_copy(update={"dir": whole.output.dir + "-part"})})
    train(part.model_copy(update={
        "training": part.training.model_copy(update={"steps": 2})}))
    monkeypatch.setattr(loftq, "StoredWeights", None)
    train(part, resume=True)
    for recipe in (whole, part):
        files.append((RunDir(Path(recipe.output.dir)).adapter / "adapter_model.safetensors")
                     .read_bytes())
    assert files[0] == files[1]


def test_loftq_reads_a_sharded_base(tmp_path):
    folder = tmp_path / "base"
    AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).save_pretrained(
        folder, max_shard_size="3MB")
    AutoTokenizer.from_pretrained(TINY).save_pretrained(folder)
    section = Model(base=str(folder), dtype="float32", quantization="nf4")
    loaded = load_base(section, "float32", "eager", torch.device("cpu"))
    sharded = started(loaded, init="loftq").state_dict()
    whole = started(base("float32", "nf4"), init="loftq").state_dict()
    assert all(torch.equal(sharded[name], whole[name]) for name in whole if "lora_" in name)


@pytest.mark.parametrize(("adapter", "message"), [
    ({"init": "eva", "rank": 100, "options": {"eva_config": {"rho": 3.0}}}, "300 directions"),
    ({"init": "lora_ga", "rank": 128}, "twice the rank"),
    ({"init": "pissa", "target_modules": ["lm_head"]}, "weight that it shares"),
    ({"init": "olora", "target_modules": ["embed_tokens"]}, "cannot start an embedding"),
    ({"init": "eva", "options": {"eva_config": {"rh": 1}}}, "did you mean rho"),
    ({"init": "eva", "options": {"eva_config": {"rho": 0.5}}}, "rho.* must be"),
    ({"init": "corda", "options": {"corda_config": {"cache_file": "x"}}}, "is a pickle"),
    ({"init": "corda", "options": {"eva_config": {"rho": 1}}}, "belongs to init eva"),
    ({"options": {"lora_ga_config": {}}}, "belongs to init lora_ga"),
    ({"init": "pissa", "options": {"use_qalora": True}}, "changes what a layer computes"),
    ({"init": "corda", "options": {"corda_config": 3}}, "is a mapping"),
])
def test_what_a_start_cannot_do_is_refused_without_weights(adapter, message):
    config = load_config(Model(base="tiny"))
    with pytest.raises(UserError, match=message):
        add_adapter(meta_model(config), Adapter(**adapter), 0, "tiny")


@pytest.mark.parametrize("init", COMPUTED)
def test_fused_experts_are_refused_without_weights(shrunken, init):
    model = meta_model(load_config(Model(base=str(shrunken("mixtral")))))
    with pytest.raises(UserError, match="cannot start fused expert weights"):
        add_adapter(model, Adapter(rank=4, init=init), 0, "moe")


@pytest.mark.parametrize("init", ["pissa", "corda", "lora_ga", "eva"])
def test_transposed_layers_start_too(shrunken, init, tmp_path):
    """GPT-2 stores its weights as (in, out)."""
    folder, layers = shrunken("gpt2"), ["c_attn", "c_fc", "c_proj"]
    section = Model(base=str(folder), dtype="float32")
    original = load_base(section, "float32", "eager", torch.device("cpu")).eval()
    ids = torch.arange(5, 40)[None]
    expected = logits_of(original, list(ids.numpy()))
    model = started(original, init=init, rank=2, target_modules=layers)
    with torch.no_grad():
        for _, layer in lora_layers(model):
            layer.lora_B["default"].weight.add_(0.05)
    save_adapter(tmp_path, model)
    trained = logits_of(model.eval(), list(ids.numpy()))
    from peft import PeftModel

    fresh = load_base(section, "float32", "eager", torch.device("cpu"))
    loaded = PeftModel.from_pretrained(fresh, str(tmp_path)).eval()
    assert compare(trained, logits_of(loaded, list(ids.numpy()))).relative_rms < 1e-5
    assert compare(trained, expected).relative_rms > 1e-3
    if init == "pissa":
        fresh = load_base(section, "float32", "eager", torch.device("cpu"))
        with pytest.raises(UserError, match="transposed"):
            started(fresh, init="olora", rank=2, target_modules=layers)


@pytest.mark.parametrize(("values", "message"), [
    ({"init": "orthogonal", "rank": 5}, "even rank"),
    ({"init": "orthogonal", "rank_pattern": {"q_proj": 3}}, "even rank"),
    ({"init_rows": 8}, "looks at no rows"),
])
def test_what_cannot_go_together_is_refused_with_the_recipe(values, message):
    with pytest.raises(ValueError, match=message):
        Adapter(**values)


def saved_bytes(model: nn.Module) -> int:
    """Size of what the forward pass keeps for the backward pass, without the weights."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    batch = next(iter(batches(4)))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = SummedLoss(model)(**batch)
    loss.backward()
    return sum(kept.values())


def test_lora_fa_trains_b_alone_and_keeps_less_for_the_backward_pass(make_recipe, trained_model):
    whole = started(base())
    frozen = started(base(), freeze_a=True)
    assert 2 * describe(frozen).trainable_parameters < 1.3 * describe(whole).trainable_parameters
    assert saved_bytes(frozen) < 0.9 * saved_bytes(whole)
    before = {name: tensor.clone() for name, tensor in frozen.state_dict().items()}
    recipe = make_recipe(adapter={"freeze_a": True}, training=LEARNS)
    model, result = trained_model(recipe)
    assert result.progress.best_loss < 0.9 * result.progress.first_eval_loss
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) == ("lora_B" not in name), name
    run = RunDir(Path(recipe.output.dir))
    assert json.loads(run.record.read_text())["adapter"]["trainable_parameters"] == sum(
        tensor.numel() for name, tensor in before.items() if "lora_B" in name)
    trained = logits_of(model, list(IDS.numpy()))
    assert compare(trained, plain_logits(run.adapter)).relative_rms < 1e-5
    merged = merge(open_adapter(run.path), run.path / "merged", "float32")
    assert merged.agreement.relative_rms < 1e-4


def test_lora_plus_is_adamw_with_two_rates():
    """Against torch's AdamW with one group for A and one for B at ratio times the rate."""
    ours, theirs = started(base()).double(), started(base()).double()
    optimizer = build_optimizer(
        ours.named_parameters(), Training(lora_plus_ratio=16, learning_rate=1e-4, weight_decay=0.1),
        torch.device("cpu"))
    a, b = ([p for name, p in theirs.named_parameters() if f"lora_{x}" in name] for x in "AB")
    reference = torch.optim.AdamW([{"params": a, "lr": 1e-4}, {"params": b, "lr": 16e-4}],
                                  weight_decay=0.1)
    for batch in batches(4):
        for model, update in ((ours, optimizer), (theirs, reference)):
            SummedLoss(model)(**batch).backward()
            if update is optimizer:
                for group in update.param_groups:
                    group["lr"] = 1e-4 * group["rate_factor"]
            update.step()
            update.zero_grad()
    for (name, ours_), theirs_ in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(ours_, theirs_, rtol=1e-6, atol=1e-9), name
    assert math.isclose(optimizer.param_groups[1]["lr"], 16e-4)


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit"])
def test_lora_plus_resumes_to_the_same_bytes(make_recipe, train, optimizer):
    training, files = {"optimizer": optimizer, "lora_plus_ratio": 8.0}, []
    whole = make_recipe("whole", training=training)
    result = train(whole)
    assert result.progress.best_loss < 0.9 * result.progress.first_eval_loss
    train(make_recipe("part", training={**training, "steps": 2}))
    rest = make_recipe("part", training=training)
    train(rest, resume=True)
    for recipe in (whole, rest):
        files.append((RunDir(Path(recipe.output.dir)).adapter / "adapter_model.safetensors")
                     .read_bytes())
    assert files[0] == files[1]
    plain = make_recipe("plain", training={"optimizer": optimizer})
    train(plain)
    other = RunDir(Path(plain.output.dir)).adapter / "adapter_model.safetensors"
    assert other.read_bytes() != files[0]


def test_the_metadata_of_other_adapters_name_no_base(tmp_path):
    save_adapter(tmp_path, started(base(), init="pissa"))
    with safe_open(tmp_path / "adapter_model.safetensors", "pt") as reader:
        assert reader.metadata() == {"format": "pt"}
