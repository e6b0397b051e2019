"""Memory of a run by kind, against exact figures and real runs."""

import json
import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorafit.plan.activations import kept
from lorafit.plan.load import Load
from lorafit.plan.memory import (
    base_bytes,
    largest_micro_batch,
    longest_sequence,
    predict_memory,
    recomputation_for,
)
from lorafit.plan.shapes import from_tensors, shapes_of
from lorafit.plan.sizes import sizes_of
from lorafit.plan.trained import trained_of
from lorafit.recipe.adapter import Adapter
from lorafit.recipe.schema import Model

LLAMA_8B = {"model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336,
            "vocab_size": 128_256, "tie_word_embeddings": False}
# GPT-3's shapes, in the names of a family that has separate q and v.
GPT_3 = {"model_type": "llama", "hidden_size": 12288, "num_hidden_layers": 96,
         "num_attention_heads": 96, "intermediate_size": 32768, "vocab_size": 50257}


def shapes(config):
    return from_tensors(config, sizes_of(config, "here"), None, None, "here")


EIGHT = shapes(LLAMA_8B)


def predicted(section, base=EIGHT, **load):
    given = {"dtype": "bfloat16", "tokens": 4096, "supervised_tokens": 2048, "rows": 2,
             "longest_tokens": 2048, "device": "cuda"} | load
    return predict_memory(base, trained_of(base, section), section, Load(**given))


def test_gpt_3_needs_a_third():
    """Hu et al. 2021, §4.2: 18.87 M parameters at rank 4 on q and v, 37.7 MB in 16 bits; Adam's
    1.2 TB shrink to 350 GB, which is the base in 16 bits and next to nothing."""
    base = shapes(GPT_3)
    section = Adapter(rank=4, target_modules=["q_proj", "v_proj"])
    assert trained_of(base, section).parameters == 18_874_368
    found = predicted(section, base, tokens=1, supervised_tokens=1)
    state = found.adapters + found.gradients + found.optimizer
    assert state == 16 * 18_874_368
    assert state < 0.001 * found.base


def test_weights_of_eight_billion():
    load = Load("bfloat16", 1, 1)
    assert EIGHT.parameters == 8_030_261_248
    assert base_bytes(EIGHT, load) == 2 * EIGHT.parameters
    quantised = Load("bfloat16", 1, 1, quantization="nf4")
    linear = 32 * (4096 * 4096 * 2 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
    assert base_bytes(EIGHT, quantised) == pytest.approx(
        2 * (EIGHT.parameters - linear) + linear * (4.127 / 8), rel=1e-3)  # arXiv 2305.14314


def test_full_fine_tuning_holds_four_copies():
    found = predicted(Adapter(method="full"), dtype="float32")
    assert found.base + found.gradients + found.optimizer == 16 * EIGHT.parameters
    assert found.adapters == 0


@settings(max_examples=40, deadline=None)
@given(rank=st.integers(1, 256), tokens=st.integers(1, 20_000), more=st.integers(1, 5000),
       share=st.floats(0.01, 1))
def test_more_takes_more(rank, tokens, more, share):
    few, many = (predicted(Adapter(rank=rank), tokens=size, longest_tokens=size,
                           supervised_tokens=max(1, int(share * size)))
                 for size in (tokens, tokens + more))
    assert few.peak_bytes < many.peak_bytes
    assert few.peak_bytes < predicted(
        Adapter(rank=rank + 1), tokens=tokens, longest_tokens=tokens,
        supervised_tokens=max(1, int(share * tokens))).peak_bytes
    assert sum(many.by_kind().values()) == many.training_bytes


def test_recomputation_takes_less_and_is_chosen_where_it_must_be():
    section = Adapter()
    trained = trained_of(EIGHT, section)
    ways = [kept(EIGHT, trained, section, Load("bfloat16", 8192, 8192, 1, 8192, "cuda",
                                               recomputation=way)).total
            for way in ("none", "selective", "full")]
    assert ways[0] > 1.5 * ways[1] > 1.5 * ways[2]
    load = Load("bfloat16", 8192, 8192, 1, 8192, "cuda")
    chosen = [recomputation_for(EIGHT, trained, section, load, gib << 30).value
              for gib in (80, 40, 24)]
    assert chosen == ["none", "selective", "full"]


def test_what_fits_is_the_largest_that_does():
    def rows(count):
        return predicted(Adapter(), tokens=1024 * count, rows=count, longest_tokens=1024,
                         supervised_tokens=512 * count)

    room = 40 << 30
    most = largest_micro_batch(rows, room)
    assert rows(most).peak_bytes <= room < rows(most + 1).peak_bytes
    assert largest_micro_batch(rows, 1 << 30) == 0
    longest = longest_sequence(lambda n: predicted(Adapter(), tokens=n, supervised_tokens=n,
                                                   rows=1, longest_tokens=n), room)
    assert 1024 * most < longest < 2 * 1024 * most


def test_shards_hold_their_part():
    whole, half = (predicted(Adapter(), shards=shards) for shards in (1, 8))
    assert half.optimizer == whole.optimizer // 8
    assert half.base < whole.base / 4


def test_a_run_tells_before_and_after(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"{n} and {n}?", "completion": f"It is {2 * n}."})
                            + "\n" for n in range(16)))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"model: {{base: tiny}}\ndata: {{train: {rows}}}\n"
                      f"training: {{steps: 3, batch_size: 8}}\noutput: {{dir: {tmp_path}/run}}\n")
    done = subprocess.run([sys.executable, "-m", "lorafit", "train", str(recipe)],
                          capture_output=True, text=True, timeout=200,
                          env=os.environ | {"LORAFIT_CACHE": str(tmp_path / "cache")})
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "run/record.json").read_text())["predicted"]
    measured = json.loads((tmp_path / "run/result.json").read_text())
    assert told["step_s"] is None
    assert "never measured" in told["based_on"]
    assert sum(told["memory_bytes"].values()) == told["peak_memory_bytes"]
    assert told["peak_memory_bytes"] == pytest.approx(measured["peak_memory_bytes"], rel=0.15)
    assert measured["step_s"] > 0
    assert "predicted memory" in done.stdout
    shapes_ = shapes_of(Model(base="tiny"))
    assert told["memory_bytes"]["base"] == 4 * shapes_.parameters
