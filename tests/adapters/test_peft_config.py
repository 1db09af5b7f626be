"""PEFT's `adapter_config.json`: what litpeft reads from it, and the task type that PEFT looks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import nn

from litpeft.adapters import LoRA
from litpeft.adapters.peft_config import lora_options, read_config, task_type
from litpeft.errors import UserError

DEFAULT = {
    "rank": 8, "alpha": 8, "dropout": 0.0, "rslora": False, "targets": r"(.*\.)?()", "exclude": None,
    "modules_to_save": [], "layers": None,
}  # fmt: skip
MODEL = nn.ModuleDict({"block": nn.ModuleDict({"q_proj": nn.Linear(2, 2), "score": nn.Linear(2, 2)})})


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, {}),
        (
            {"r": 4, "lora_alpha": 2.5, "lora_dropout": 0.25, "use_rslora": True, "layers_to_transform": [0, 2]},
            {"rank": 4, "alpha": 2.5, "dropout": 0.25, "rslora": True, "layers": [0, 2]},
        ),
        ({"layers_to_transform": 0}, {"layers": [0]}),
        ({"target_modules": ["q_proj", "self.key"]}, {"targets": r"(.*\.)?(q_proj|self\.key)"}),
        ({"target_modules": r".*\.q_proj"}, {"targets": r".*\.q_proj"}),
        ({"target_modules": "q_proj", "target_parameters": []}, {"targets": "q_proj"}),
        (
            {"target_modules": "q_proj", "target_parameters": ["experts.down_proj"]},
            {"targets": r"(.*\.)?(q_proj|experts\.down_proj)"},
        ),
        ({"target_modules": None, "target_parameters": ["a.b"]}, {"targets": r"(.*\.)?(a\.b)"}),
        ({"exclude_modules": ["0.q_proj", "k"]}, {"exclude": r"(.*\.)?(0\.q_proj|k)"}),
        ({"exclude_modules": "a.*"}, {"exclude": "a.*"}),
        ({"exclude_modules": []}, {"exclude": []}),
        ({"modules_to_save": ["score", "classifier", "core"]}, {"modules_to_save": ["score"]}),
        (
            {"rank_pattern": {"q": 2}, "alpha_pattern": {}, "bias": "all"},
            {"rank_pattern": {"q": 2}, "bias": "all"},
        ),
    ],
)
def test_the_options_of_a_file_are_those_of_our_lora(config: dict[str, Any], expected: dict[str, Any]) -> None:
    options = lora_options({"peft_type": "LORA"} | config, MODEL, Path("folder"))
    assert options == DEFAULT | expected
    LoRA(**options)


def test_another_method_is_loaded_with_peft() -> None:
    with pytest.raises(UserError, match=r"^folder is an adapter of type IA3; load it with PEFT\.$"):
        lora_options({"peft_type": "IA3"}, MODEL, Path("folder"))
    with pytest.raises(UserError, match="adapter of type None"):
        lora_options({}, MODEL, Path("folder"))


def test_a_configuration_is_a_json_object(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"r": 4}')
    assert read_config(tmp_path) == {"r": 4}
    (tmp_path / "adapter_config.json").write_text("[4]")
    with pytest.raises(UserError, match=r"adapter_config\.json is not a JSON object\.$"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("kind", "with_head", "without"),
    [
        ("BertForSequenceClassification", "SEQ_CLS", None),
        ("BertForTokenClassification", "TOKEN_CLS", None),
        ("BertForQuestionAnswering", "QUESTION_ANS", None),
        ("LlamaForCausalLM", "CAUSAL_LM", "CAUSAL_LM"),
        ("GPT2LMHeadModel", "CAUSAL_LM", "CAUSAL_LM"),
        ("T5ForConditionalGeneration", "SEQ_2_SEQ_LM", "SEQ_2_SEQ_LM"),
        ("BertModel", None, None),
        ("ForCausalLMHead", None, None),
    ],
)
def test_the_task_type_is_none_where_peft_would_look_for_a_head(
    kind: str, with_head: str | None, without: str | None
) -> None:
    model = type(kind, (nn.Module,), {})()
    assert (task_type(model, True), task_type(model, False)) == (with_head, without)
