"""The same recipe twice, in two directories."""

from reliability.row import Row, Setting, Tally
from reliability.subject import Lorafit, Peer, Subject, each, uninterrupted

RECIPES = {
    "dropout": {},
    "packed, linear schedule": {
        "data": {"max_length_tokens": 64},
        "training": {"micro_batch_size": 1, "batching": "packed", "schedule": "linear"}},
    "streaming, 2 workers": {"data": {"streaming": True, "shuffle_rows": 16, "workers": 2}},
    "nf4": {"model": {"quantization": "nf4"}},
    "dora": {"adapter": {"dora": True}},
    "2 workers, padded, accumulation 8": {
        "data": {"workers": 2}, "training": {"micro_batch_size": 1, "batching": "padded"}},
    "8-bit optimizer": {"training": {"optimizer": "adamw_8bit"}},
    "evaluation, the best kept": {
        "data": {"eval_fraction": 0.2}, "training": {"eval_every": 3, "schedule": "cosine"}},
    "bfloat16, activations computed again": {
        "model": {"dtype": "bfloat16"}, "training": {"activation_checkpointing": "full"}},
    "pissa, rslora, LoRA+": {
        "adapter": {"init": "pissa", "rslora": True}, "training": {"lora_plus_ratio": 4.0}},
}
_OF_PEER = {
    "dropout": {}, "2 workers": {"workers": 2}, "accumulation 8": {"batch_size": 1,
                                                                  "accumulation": 8},
}


def ask(setting: Setting, times: int) -> Tally:
    names = list(RECIPES)
    return _ask(setting, times, names, lambda number, name: Lorafit(
        setting.work / str(number), RECIPES[name]))


def of_peer(setting: Setting, times: int) -> Tally:
    names = list(_OF_PEER)
    return _ask(setting, times, names, lambda number, name: Peer(
        setting.work / str(number), _OF_PEER[name]))


def _ask(setting: Setting, times: int, names: list[str], make) -> Tally:
    def case(number: int) -> str | None:
        name = names[number % len(names)]
        subject: Subject = make(number, name)
        digests = [uninterrupted(subject, run, environment={
            "LORAFIT_CACHE": str(subject.folder / f"cache-{run}")}).digest for run in "ab"]
        return None if digests[0] == digests[1] else f"{name}: two results"

    tally = each(setting, times, case)
    tally.remarks.append("; ".join(names[:times]))
    return tally


ROW = Row("twice", "the same recipe twice, in two directories", "byte-identical adapters", 10, 2,
          ask, of_peer)
