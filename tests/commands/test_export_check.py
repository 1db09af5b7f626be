"""`litpeft export` proves an adapter where it lands: PEFT loads the folder and computes the logits of the trained model."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, XLMRobertaConfig, XLMRobertaForSequenceClassification

from litpeft.__main__ import main
from litpeft.commands import export_check
from litpeft.commands.export_check import Inputs, check_merged, logits
from litpeft.errors import UserError
from litpeft.runs.record import read_record

QLORA = ["--model.adapter", "QLoRA", "--model.adapter.targets", "all-linear"]


@pytest.fixture
def llama_run(tiny_llama: str, tmp_path: Path) -> list[str]:
    """Arguments of a short fit of a Llama without biases, in bf16 (the default)."""
    rows = [{"instruction": f"say {word}", "input": "", "output": word} for word in ("good", "bad", "fine", "dull") * 4]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    return [
        *("fit", "--model", "CausalLM", "--model.model_name", tiny_llama, "--data", "Alpaca"),
        *("--data.train_file", str(tmp_path / "rows.json"), "--data.val_file", str(tmp_path / "rows.json")),
        *("--data.batch_size", "4", "--data.max_length", "64", "--trainer.enable_progress_bar", "false"),
        *("--model.optimizer", "torch.optim.AdamW", "--model.optimizer.lr", "1e-2", "--trainer.accelerator", "cpu"),
        *("--run_dir", str(tmp_path / "run")),
    ]


@pytest.mark.parametrize("adapter", [QLORA, ["--model.adapter", "LoRA"], ["--model.adapter", "QDoRA"]])
def test_an_adapter_of_a_model_without_biases_loads_in_peft(
    llama_run: list[str], adapter: list[str], tmp_path: Path, tiny_llama: str, capsys: pytest.CaptureFixture
) -> None:
    """All parameters of a fully adapted 4-bit block are trained; the block must not become a module to save."""
    assert main([*llama_run, *adapter]) == 0
    capsys.readouterr()
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out"), "--format", "adapter"]) == 0
    printed = capsys.readouterr().out
    assert "PEFT's logits differ by at most" in printed
    assert "on 4 validation rows (bf16 rounding of this model: " in printed
    assert printed.rstrip().endswith(": rounding")
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["modules_to_save"] is None
    base = AutoModelForCausalLM.from_pretrained(tiny_llama)
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "out")
    assert loaded(torch.tensor([[5, 6, 7]])).logits.isfinite().all()
    AutoTokenizer.from_pretrained(tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: peft\npipeline_tag: text-generation\ntags:\n")
    assert f"{read_record(tmp_path / 'run')['val_loss']:.4f}" in card


def test_an_adapter_that_peft_computes_differently_is_refused(
    llama_run: list[str], tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main([*llama_run, *QLORA]) == 0
    check = export_check.check_adapter

    def damaged(folder: Path, *rest: object) -> str:
        tensors = load_file(folder / "adapter_model.safetensors")
        save_file({name: 2 * tensor for name, tensor in tensors.items()}, folder / "adapter_model.safetensors")
        return check(folder, *rest)

    monkeypatch.setattr(export_check, "check_adapter", damaged)
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out"), "--format", "adapter"]) == 2
    assert "PEFT computes other logits than the trained adapter" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_adapter_that_peft_cannot_load_is_refused(
    llama_run: list[str], tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main([*llama_run, *QLORA]) == 0
    check = export_check.check_adapter

    def damaged(folder: Path, *rest: object) -> str:
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps(config | {"modules_to_save": ["model.layers.0.mlp"]}))
        return check(folder, *rest)

    monkeypatch.setattr(export_check, "check_adapter", damaged)
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out"), "--format", "adapter"]) == 2
    assert "give --format merged" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_without_peft_the_tensors_are_read_back(
    llama_run: list[str], tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main([*llama_run, *QLORA]) == 0
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out"), "--format", "adapter"]) == 0
    assert "PEFT is not installed, so the tensors were read back and compared" in capsys.readouterr().out


def test_a_model_whose_head_comes_first_trains_in_bf16(
    tiny_model: str, sentences: dict[str, str], tmp_path: Path
) -> None:
    """XLM-RoBERTa: the first parameter of the model is the new fp32 head, the base is bf16."""
    folder = tmp_path / "model"
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    config = XLMRobertaConfig(
        vocab_size=25, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=130, pad_token_id=0, bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    model = XLMRobertaForSequenceClassification(config)
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("classifier")}
    model.save_pretrained(folder, state_dict=state)
    arguments = [
        *("fit", "--model", "SequenceClassification", "--model.model_name", str(folder), "--data", "SST2"),
        *("--data.train_file", sentences["train"], "--data.val_file", sentences["val"], "--data.max_length", "100"),
        *("--model.adapter", "LoRA", "--trainer.max_steps", "2", "--trainer.accelerator", "cpu"),
        *("--trainer.enable_progress_bar", "false", "--run_dir", str(tmp_path / "run")),
    ]
    assert main(arguments) == 0
    assert read_record(tmp_path / "run")["precision"] == "bf16"
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out"), "--format", "adapter"]) == 0


BOTTLENECK = """
from torch import nn
from litpeft.adapters import Adapter

class Bottleneck(Adapter):
    name = "bottleneck"

    def adapt(self, model):
        for layer in model.bert.encoder.layer:
            layer.output.dense.extra = nn.Linear(64, 32)
            layer.output.dense.register_forward_hook(lambda module, inputs, out: out + module.extra(inputs[0]))
"""


def test_an_adapter_without_merge_is_refused_as_a_merged_model(
    fit_arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bottleneck_adapter.py").write_text(BOTTLENECK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    adapter = ["--model.adapter", "bottleneck_adapter.Bottleneck", "--trainer.max_steps", "2", "--run_dir", "run"]
    assert main([*fit_arguments, *adapter]) == 0
    assert main(["export", "run", "out", "--format", "merged"]) == 2
    error = capsys.readouterr().err
    assert "so the adapter cannot be merged; give the adapter class a `merge` method" in error
    assert not (tmp_path / "out").exists()


class Answers(nn.Module):
    """Gives the same logits for every input, in the dtype of its only parameter."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.given, self.weight = logits, nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))
        self.seen: dict[str, torch.Tensor] = {}

    def forward(self, **tensors: torch.Tensor) -> SimpleNamespace:
        self.seen = tensors
        return SimpleNamespace(logits=self.given.to(self.weight.dtype))


def test_compared_are_the_logits_of_tokens_without_padding_and_virtual_tokens() -> None:
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    tensors = {"input_ids": torch.zeros(2, 3, dtype=torch.int64), "attention_mask": mask}
    tokens = torch.arange(2 * 3 * 4).view(2, 3, 4)
    expected = tokens[mask.bool()].float()
    assert torch.equal(logits(Answers(tokens), Inputs(tensors, "")), expected)
    virtual = torch.cat([torch.full((2, 5, 4), 99), tokens], 1)
    assert torch.equal(logits(Answers(virtual), Inputs(tensors, "")), expected)
    classes = torch.arange(8).view(2, 4)
    assert torch.equal(logits(Answers(classes), Inputs(tensors, "")), classes.float())
    unmasked = {"input_ids": tensors["input_ids"]}
    assert torch.equal(logits(Answers(tokens), Inputs(unmasked, "")), tokens.float())
    model = Answers(classes)
    logits(model, Inputs({"pixel_values": torch.zeros(2, 3, 4, 4)}, ""))
    assert model.seen["pixel_values"].dtype == torch.bfloat16
    assert not model.training


@pytest.mark.parametrize("quantises_inputs", [False, True])
@pytest.mark.parametrize("same_base", [False, True])
@pytest.mark.parametrize("share", [0.03, 0.1, 0.3])
def test_a_merged_model_may_differ_by_roundings(
    share: float, same_base: bool, quantises_inputs: bool, tiny_llama: str
) -> None:
    """In fp32 by 5 % of the largest logit, beside a run that quantises the inputs of its layers by 20 %."""
    model = AutoModelForCausalLM.from_pretrained(tiny_llama).float()
    ids = torch.tensor([[5, 6, 7, 8]])
    inputs = Inputs({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, "rows")
    trained = logits(model, inputs)
    trained.view(-1)[trained.abs().argmin()] = share * trained.abs().max()
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        arguments = Path(folder), type(model), trained, inputs, same_base
        more = [True] if quantises_inputs else []  # by default it does not
        if same_base and share > (0.2 if quantises_inputs else 0.05):
            with pytest.raises(UserError, match=r"^the logits of the merged model differ by .* nothing is written\.$"):
                check_merged(*arguments, *more)
        else:
            check_merged(*arguments, *more)


@pytest.mark.parametrize("error", [UserError("data.train_file: no such file"), FileNotFoundError()])
def test_without_its_data_a_model_is_compared_on_random_tokens(error: Exception, tiny_llama: str) -> None:
    def fail() -> None:
        raise error

    run = SimpleNamespace(datamodule=SimpleNamespace(prepare_data=fail), model=None)
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    inputs = export_check.example_inputs(run, model)
    assert inputs.source == "random token ids"
    assert logits(model, inputs).isfinite().all()
