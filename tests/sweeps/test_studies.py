"""The experiments of published studies: each trial as the documents in shared/studies write it."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from litpeft.sweeps.experiment import read_experiment
from litpeft.sweeps.resolve import resolve

QV, ALL, ATTENTION, BERT = ["query", "value"], "all-linear", ["c_attn"], ["query", "key", "value", "dense"]
ADAMW, SGD, PAGED = ("AdamW", 3e-4), ("SGD", 0.1), ("PagedAdamW", 2e-5)
DOUBLE, SINGLE = ("nf4", True), ("nf4", False)
# trial: rank, scale of the update, targets, (quantisation, of the constants too), dtype, (optimizer, learning rate)
LORA_INSIGHTS = {
    "default": (8, 2, QV, None, "bf16", ADAMW),
    "qlora-nf4": (8, 2, QV, SINGLE, "bf16", ADAMW),  # bnb.nf4, not bnb.nf4-dq
    "qlora-fp4": (8, 2, QV, ("fp4", False), "bf16", ADAMW),
    "adamw-cosine": (8, 2, QV, None, "bf16", ADAMW),
    "sgd": (8, 2, QV, None, "bf16", SGD),
    "sgd-cosine": (8, 2, QV, None, "bf16", SGD),
    "nf4-sgd-cosine": (8, 2, QV, SINGLE, "bf16", SGD),
    "two-epochs": (8, 2, QV, None, "bf16", ADAMW),
    "all-layers": (8, 2, ALL, None, "bf16", ADAMW),
    "r16-alpha16": (16, 1, ALL, None, "bf16", ADAMW),
    **{f"r{rank}": (rank, 2, ALL, None, "bf16", ADAMW) for rank in (16, 32, 64, 128, 256, 512, 1024, 2048)},
    **{f"r256-alpha{alpha}": (256, alpha / 256, ALL, None, "bf16", ADAMW) for alpha in (1, 16, 32)},
    **{f"r256-alpha{times}x": (256, times, ALL, None, "bf16", ADAMW) for times in (1, 3, 4)},
}
EXPLORING_PEFT = {
    "full": (None, None, None, None, "bf16", ("AdamW", 2e-5)),
    "lora": (8, 4, ATTENTION, None, "bf16", ADAMW),  # alpha * A B, without / rank
    "dora": (8, 0.5, ATTENTION, None, "bf16", ADAMW),  # the scale goes out in the norm
    "qlora": (8, 0.5, ATTENTION, DOUBLE, "fp16", ADAMW),
}
QLORA_FLAN_T5 = {
    "lora": (64, 0.25, QV, None, "bf16", ADAMW),
    "qlora": (64, 0.25, QV, DOUBLE, "bf16", ADAMW),
}
QUANTIZE_OR_NOT = {
    "full": (None, None, None, None, "bf16", ("AdamW", 2e-5)),
    **{f"lora-r{rank}": (rank, 2, QV, None, "bf16", ADAMW) for rank in (2, 4, 8)},
    **{f"qlora-r{rank}": (rank, 2, QV, DOUBLE, "bf16", ADAMW) for rank in (2, 4, 8)},
}
PYTORCH_LORA_QLORA = {
    "full": (None, None, None, None, "bf16", PAGED),
    "lora": (8, 16 / 8**0.5, BERT, None, "bf16", PAGED),
    "qlora": (8, 16 / 8**0.5, BERT, DOUBLE, "bf16", PAGED),
}
STUDIES = {
    "lora_insights": (LORA_INSIGHTS, 128),
    "exploring_peft": (EXPLORING_PEFT, None),
    "qlora_flan_t5": (QLORA_FLAN_T5, None),
    "quantize_or_not": (QUANTIZE_OR_NOT, None),
    "pytorch_lora_qlora": (PYTORCH_LORA_QLORA, None),
}


@pytest.fixture(scope="module")
def trials() -> dict[str, dict[str, dict[str, Any]]]:
    """Return {study: {trial: resolved configuration}}."""
    experiments = {name: read_experiment(name) for name in STUDIES}
    return {
        name: {trial.shown(trial.label): configs[trial.name] for trial in experiment.trials}
        for name, experiment in experiments.items()
        for configs in [resolve(experiment.trials)]
    }


@pytest.mark.parametrize("study", STUDIES)
def test_trials_are_as_published(study: str, trials: dict[str, Any]) -> None:
    expected, batch = STUDIES[study]
    assert set(trials[study]) == set(expected)
    for label, config in trials[study].items():
        model = config["model"]["init_args"]
        adapter = model["adapter"].get("init_args") or {}
        rank, optimizer = adapter.get("rank"), model["optimizer"]
        scale = adapter["alpha"] / (rank**0.5 if adapter.get("rslora") else rank) if rank else None
        quantised = (adapter["quant_type"], adapter["double_quant"]) if "quant_type" in adapter else None
        trained = optimizer["class_path"].rpartition(".")[2], optimizer["init_args"]["lr"]
        found = rank, scale, adapter.get("targets"), quantised, model["dtype"], trained
        assert found == (*expected[label][:1], pytest.approx(expected[label][1]), *expected[label][2:]), label
        if batch:
            size = config["data"]["init_args"]["batch_size"] * config["trainer"]["accumulate_grad_batches"]
            assert size == batch, label
        assert optimizer["init_args"].get("weight_decay") == (0.01 if "Adam" in trained[0] else 0.0), label


def test_the_default_of_lora_insights_trains_the_published_parameters(trials: dict[str, Any]) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(LlamaConfig())  # its defaults are those of Llama 7B
    assert sum(p.numel() for p in model.parameters()) == 6_738_415_616
    adapter = trials["lora_insights"]["default"]["model"]["init_args"]["adapter"]
    module, _, name = adapter["class_path"].rpartition(".")
    getattr(importlib.import_module(module), name)(**adapter["init_args"]).apply(model)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 4_194_304


def test_further_settings_of_the_documents(trials: dict[str, Any]) -> None:
    default = trials["lora_insights"]["default"]["model"]["init_args"]
    assert (default["adapter"]["init_args"]["dropout"], default["scheduler"]["init_args"]["warmup"]) == (0.05, 100)
    assert trials["lora_insights"]["two-epochs"]["trainer"]["max_epochs"] == 2
    for label, config in trials["qlora_flan_t5"].items():
        assert config["model"]["init_args"]["adapter"]["init_args"]["dropout"] == 0.1, label
        assert config["model"]["init_args"]["tf32"] is True, label
    for label in ("lora", "qlora"):
        adapter = trials["pytorch_lora_qlora"][label]["model"]["init_args"]["adapter"]["init_args"]
        assert (adapter["dropout"], adapter["rslora"]) == (0.1, True)
    own = trials["exploring_peft"]["lora"]["model"]["init_args"]["adapter"]["init_args"]
    assert (own["init"], own["dropout"]) == ("normal", 0.0)
