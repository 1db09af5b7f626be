"""`litpeft estimate`: compared with a run of the same configuration, and without weights or data."""

from __future__ import annotations

import json
import random
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoTokenizer,
    BertModel,
    LlamaForCausalLM,
    LongformerConfig,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5ForConditionalGeneration,
)

from litpeft.__main__ import main
from litpeft.commands.estimate import Plan, largest
from litpeft.profiling.memory import CATEGORIES
from litpeft.profiling.memory.cuda import workspaces as cublas
from litpeft.runs.record import read_record

ADAPTERS = {
    "none": ["Full"],
    "lora": ["LoRA", "--model.adapter.targets", "all-linear", "--model.adapter.dropout", "0.1"],
    "qlora-nf4": ["QLoRA", "--model.adapter.targets", "all-linear"],
}


@pytest.mark.parametrize(
    ("name", "length"),
    [
        *((name, "--trainer.max_epochs 1") for name in ADAPTERS),
        ("none", "--trainer.max_epochs 2"),
        ("none", "--trainer.max_epochs 4 --trainer.max_steps 5"),
        ("none", "--trainer.max_epochs 1 --trainer.limit_train_batches 9"),
    ],
)
def test_the_estimate_matches_a_run_of_the_same_configuration(
    name: str, length: str, fit_arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The longest batch comes first in each epoch: in a run of one epoch it meets no state of the optimizer."""
    options = [*fit_arguments[1:], "--model.adapter", *ADAPTERS[name], "--trainer.gradient_clip_val", "1"]
    options += length.split()
    assert main(["fit", *options, "--run_dir", str(tmp_path / "run")]) == 0
    record = read_record(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    plan = Plan([*options, "--device", "cpu"])
    found = plan.trace(plan.task.adapter)
    assert (plan.later is None) == (length == "--trainer.max_epochs 2")
    for phase in ("first_step", "train", "validate"):
        assert found.phases[phase].tensors.bytes == pytest.approx(
            record["memory_phases"][phase]["peak_tensor_bytes"], rel=0.002
        )
    for kind in ("trainable_params", "total_params", "adapter_bytes", "model_bytes"):
        assert found.counts[kind] == record[kind]
    assert [path.name for path in tmp_path.iterdir()] == ["run"]  # estimate writes nothing


def write_base(kind: str, folder: Path, tiny_model: str, tiny_llama: str) -> None:
    """Write a tiny base as people publish it: without a pooler, or in shards, or as a .bin file."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model, eos_token="[SEP]")
    sizes = {"vocab_size": len(tokenizer), "pad_token_id": 0, "eos_token_id": 3}
    layers = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    if kind == "bert without pooler":
        BertModel.from_pretrained(tiny_model, add_pooling_layer=False).save_pretrained(folder)
    elif kind == "roberta as .bin":
        config = RobertaConfig(**sizes, **layers, hidden_size=32, bos_token_id=2)
        RobertaModel(config).save_pretrained(folder)
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    elif kind == "llama in shards":
        LlamaForCausalLM.from_pretrained(tiny_llama).save_pretrained(folder, max_shard_size="20KB")
        assert len(list(folder.glob("*.safetensors"))) > 1
    else:
        config = T5Config(**sizes, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0)
        T5ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize(
    ("kind", "adapter"),
    [
        ("bert without pooler", "LoRA"),
        pytest.param("bert without pooler", "QLoRA", marks=pytest.mark.whole),
        ("roberta as .bin", "DoRA"),
        pytest.param("llama in shards", "LoRA", marks=pytest.mark.whole),
        ("llama in shards", "QLoRA"),
        pytest.param("t5", "DoRA", marks=pytest.mark.whole),
        ("t5", "QLoRA"),
    ],
)
def test_parameters_and_bytes_equal_those_of_a_run_whatever_the_file_lacks(
    kind: str,
    adapter: str,
    tiny_model: str,
    tiny_llama: str,
    sentences: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A pooler that the file lacks is trained by fit; the headers of the weight files say which tensors they hold."""
    write_base(kind, tmp_path / "model", tiny_model, tiny_llama)
    if kind == "t5":
        rows = [{"instruction": f"say {word}", "input": "", "output": word} for word in ("good", "bad") * 4]
        (tmp_path / "rows.json").write_text(json.dumps(rows))
        files = {"train": str(tmp_path / "rows.json"), "val": str(tmp_path / "rows.json")}
        options = ["--model", "Seq2SeqLM", "--data", "Alpaca", "--data.max_length", "64"]
    else:
        files, options = sentences, ["--model", "SequenceClassification", "--data", "SST2"]
    options += ["--data.train_file", files["train"], "--data.val_file", files["val"], "--data.batch_size", "4"]
    options += ["--model.model_name", str(tmp_path / "model"), "--model.adapter", adapter]
    run = ["--trainer.max_steps", "1", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    assert main(["fit", *options, *run, "--run_dir", str(tmp_path / "run")]) == 0
    record = read_record(tmp_path / "run")
    assert any("pooler" in name for name in record["new_tensors"]) == (kind == "bert without pooler")
    capsys.readouterr()
    assert main(["estimate", *options, "--device", "cpu", "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert not found["tensors_unknown"]
    for field in ("trainable_params", "total_params", "adapter_bytes", "model_bytes"):
        assert found["strategies"][0][field] == record[field]


def test_a_pooler_is_said_to_be_unknown_without_weight_files(
    tiny_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(Path(tiny_model) / "config.json", tmp_path)
    options = ["estimate", "--config", "sst2", "--model.model_name", str(tmp_path), "--tokens", "16", "--device", "cpu"]
    assert main(options) == 0
    assert "not counted: a pooler that the files lack, which fit would initialise and train" in capsys.readouterr().out
    shutil.copy(Path(tiny_model) / "model.safetensors", tmp_path)
    assert main(options) == 0
    assert "a pooler that the files lack" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("method", "adapter", "message"),
    [
        *((method, "LoRA", "its quantisation package quantises real") for method in ("gptq", "awq")),
        ("compressed-tensors", "LoRA", "its quantisation package quantises real"),
        ("gptq", "QLoRA", "its weights are quantised already; leave model.base out, and give LoRA or DoRA instead of"),
        ("bitsandbytes", "QLoRA", "its weights are quantised already; leave model.base out, and give LoRA or DoRA"),
        ("bitsandbytes", "LoRA", None),
    ],
)
def test_a_base_that_is_quantised_already_is_known_or_refused(
    method: str,
    adapter: str,
    message: str | None,
    config_alone: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = json.loads((tmp_path / "config.json").read_text())
    quantised = {"quantization_config": {"quant_method": method, "bits": 4, "load_in_4bit": True}}
    (tmp_path / "config.json").write_text(json.dumps(config | quantised))
    arguments = ["--model.adapter", adapter, "--tokens", "16", "--device", "cpu"]
    assert main(["estimate", *config_alone, *arguments]) == (2 if message else 0)
    if message:
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["fit", "estimate"])
def test_weights_of_another_shape_than_the_config_says_are_refused(
    verb: str, tiny_llama: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny_llama, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"intermediate_size": 48}))
    (tmp_path / "rows.json").write_text(json.dumps([{"instruction": "say good", "input": "", "output": "good"}] * 4))
    files = [option for split in ("train", "val") for option in (f"--data.{split}_file", str(tmp_path / "rows.json"))]
    options = [verb, "--config", "alpaca", "--model", "CausalLM", "--model.model_name", str(tmp_path / "model"), *files]
    options += ["--data.max_length", "64", "--model.adapter", "LoRA"]
    where = {
        "fit": ["--trainer.accelerator", "cpu", "--run_dir", str(tmp_path / "run")],
        "estimate": ["--device", "cpu"],
    }
    assert main([*options, *where[verb]]) == 2
    assert "down_proj.weight has another shape in the file than its config.json says." in capsys.readouterr().err


def test_initial_values_of_an_adapter_are_not_computed(
    config_alone: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would take minutes for a large model with a high rank."""
    drawn = []
    uniform = torch.nn.init.kaiming_uniform_

    def watched(tensor: torch.Tensor, *arguments: object, **options: object) -> torch.Tensor:
        drawn.append(tensor.device.type)
        return uniform(tensor, *arguments, **options)

    monkeypatch.setattr(torch.nn.init, "kaiming_uniform_", watched)
    plan = Plan([*config_alone, "--tokens", "16", "--data.batch_size", "1", "--device", "cpu"])
    plan.trace(plan.task.adapter)
    assert set(drawn) == {"meta"}


@pytest.fixture
def config_alone(tiny_llama: str, tmp_path: Path) -> list[str]:
    """Return options of a model folder that holds only config.json."""
    shutil.copy(Path(tiny_llama) / "config.json", tmp_path)
    return ["--config", "alpaca", "--model", "CausalLM", "--model.model_name", str(tmp_path), "--model.adapter", "LoRA"]


def test_no_weights_data_or_gpu_are_needed(
    config_alone: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    card = "Some Card 0.6GB"  # little memory above the context, so that the search for the largest batch is short
    arguments = ["--tokens", "64", "--data.batch_size", "4", "--device", card, "--compare", "full, dora,qlora-fp4"]
    assert main(["estimate", *config_alone, *arguments]) == 0
    output = capsys.readouterr().out
    rows = {name: re.search(rf"│ {name} .*", output)[0] for name in ("full", "dora", "qlora-fp4")}
    assert all("fits" in row for row in rows.values())
    trained = {name: int(row.split("│")[2].replace(",", "")) for name, row in rows.items()}
    assert trained["full"] > trained["dora"] > trained["qlora-fp4"]
    assert "a CUDA context of 500 MiB" in output


def test_an_estimate_that_does_not_fit_names_the_batch_that_would(
    config_alone: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    size = 500 * 2**20 + 60 * 2**20  # little memory above the context
    arguments = ["--tokens", "256", "--data.batch_size", "64", "--device", str(size)]
    plan = Plan([*config_alone, *arguments])
    found = plan.trace(plan.task.adapter)
    rows, tokens = (find(plan.task.adapter, found) for find in (plan.largest_batch, plan.longest_rows))
    assert plan.needed(found) > plan.limit
    assert 0 < rows < 64
    assert 0 < tokens < 256

    def needed(rows: int, tokens: int) -> int:
        plan.data.max_length = tokens
        return plan.needed(plan.trace(plan.task.adapter, plan.task.example(rows, tokens)))

    assert needed(rows, 256) <= plan.limit < needed(rows + 1, 256)
    assert needed(64, tokens) <= plan.limit < needed(64, tokens + 16)
    assert main(["estimate", *config_alone, *arguments]) == 0
    assert "does not fit" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--device", "A100"], "--device A100: give cpu, a GPU with its memory ('A100 40GB'), or bytes."),
        (["--compare", "lora,lorra"], "--compare: no adapter is named 'lorra'; known: "),
        (["--compare", "qlora"], "--compare: no adapter is named 'qlora'; known: "),
        (["--tokens", "0"], "--tokens must be at least 1, got 0."),
        (["--tokens", "32", "--data.batch_tokens", "31"], "--tokens 32: batches have at most 31 (data.batch_tokens)."),
        (["--tokens", "600"], "data.max_length 600 is more than the 512 positions of "),
        (
            ["--data.train_file", "none.json", "--data.tokenizer", "gone/away"],
            "; or give --no_data to estimate without",
        ),
        (["--model.compile_blocks", "true"], "model.compile_blocks: the memory of compiled blocks cannot be estimated"),
        (["--devices", "0"], "--devices must be at least 1, got 0."),
        (["--devices", "2", "--nodes", "-1"], "--nodes must be at least 1, got -1."),
        (["--trainer.devices", "auto"], "trainer.devices auto: an estimate needs a number, such as --devices 8."),
        (["--devices", "2", "--strategy", "zero3"], "strategy"),
        (
            ["--devices", "2", "--strategy", "fsdp2", "--model.dtype", "fp16"],
            "fp16 does not work with trainer.strategy",
        ),
        (["--devise", "cpu"], "unknown option --devise (did you mean --device?)."),
    ],
)
def test_a_mistake_is_one_sentence(
    arguments: list[str], sentence: str, config_alone: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (
        arguments if "--data.train_file" in arguments or "--tokens" in arguments else [*arguments, "--tokens", "32"]
    )
    assert main(["estimate", *config_alone, *arguments]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(("tokens", "rows", "width"), [(32, 3, 32), (33, 3, 33), (None, 1, 64), (100, 1, 100)])
def test_made_up_batches_have_at_most_the_tokens_of_a_batch(
    tokens: int | None, rows: int, width: int, config_alone: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    most = {32: 127, 33: 99, 100: 100}.get(tokens or 0, 64)
    arguments = ["--tokens", str(tokens)] if tokens else ["--no_data", "--data.max_length", "128"]
    assert main(["estimate", *config_alone, *arguments, "--data.batch_tokens", str(most), "--no_search"]) == 0
    assert f"batches of {rows} x {width} tokens (made-up batch)" in " ".join(capsys.readouterr().out.split())


def test_the_largest_value_that_fits_is_found_for_any_growth() -> None:
    draw = random.Random(0)
    for _ in range(200):
        slope, curvature, maximum = draw.randint(1, 50), draw.randint(0, 3), draw.randint(1, 300)
        constant, known = draw.randint(0, 2000), draw.randint(1, 400)
        limit = draw.randint(0, 20_000)
        tried: list[int] = []

        def bytes_at(
            x: float, slope: int = slope, curvature: int = curvature, constant: int = constant, tried: list = tried
        ) -> int:
            tried.append(int(x))
            return int(constant + slope * x + curvature * x * x // 8)

        points = {0: constant, known: bytes_at(known)}
        tried.clear()
        found = largest(bytes_at, limit, points, maximum)
        assert found == max((x for x in range(1, maximum + 1) if bytes_at(x) <= limit), default=0)


def test_values_far_too_large_are_not_tried() -> None:
    """A nearly flat line through small batches could lead to a guess that is a thousand times too large."""
    tried: list[int] = []

    def bytes_at(x: int) -> int:
        tried.append(x)
        return 100 + x // 4 + (1000 if x > 37 else 0)

    assert largest(bytes_at, 500, {0: 100, 1: 101, 5: 102}, 1 << 14) == 37
    assert max(tried) <= 4 * 37
    assert len(tried) < 16


def test_the_search_is_short_although_the_allocator_rounds_up() -> None:
    for block in (1, 2_000, 60_000, 10_000_000):
        tried: list[int] = []

        def bytes_at(x: float, block: int = block, tried: list = tried) -> int:
            tried.append(int(x))
            return -(-int(3_000 + 700 * x) // block) * block

        found = largest(bytes_at, 30_000_000, {0: bytes_at(0), 4: bytes_at(4)}, 2**16)
        assert bytes_at(found) <= 30_000_000 < bytes_at(found + 1)
        assert len(tried) < 8 + 2 * 16


@pytest.mark.parametrize(
    ("device", "workspaces"),
    [("A100 80GB", 16.2), ("H100 80GB", 64.0), ("NVIDIA GH200 96 GB", 64.0), ("L40S 48GB", 16.2)],
)
def test_the_larger_workspaces_of_hopper_gpus_are_counted(
    config_alone: list[str], device: str, workspaces: float
) -> None:
    plan = Plan([*config_alone, "--tokens", "16", "--data.batch_size", "1", "--device", device])
    assert sum(cublas(plan.capability)) / 2**20 == pytest.approx(workspaces, abs=0.06)
    assert plan.context == (750 if workspaces == 64 else 500) * 2**20


def test_a_narrow_terminal_gets_a_line_per_strategy_with_full_numbers(
    config_alone: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    arguments = ["--tokens", "64", "--data.batch_size", "4", "--device", "A100 40GB", "--compare", "full,lora"]
    assert main(["estimate", *config_alone, *arguments]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("full: ", "lora: "))]
    assert len(lines) == 2
    assert all(
        re.search(r"trainable [\d,]+, parameters [\d,]+, .*, of 40.0 GiB fits, largest batch at 64", x) for x in lines
    )
    assert "…" not in "".join(lines)


def test_raw_numbers_as_json_and_csv(config_alone: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--tokens", "64", "--data.batch_size", "4", "--device", "cpu", "--compare", "full,lora", "--format"]
    assert main(["estimate", *config_alone, *arguments, "json"]) == 0
    read = json.loads(capsys.readouterr().out)
    assert (read["rows"], read["tokens"]) == (4, 64)
    assert [row["adapter"] for row in read["strategies"]] == ["full", "lora"]
    assert main(["estimate", *config_alone, *arguments, "csv"]) == 0
    header, full, _ = capsys.readouterr().out.splitlines()
    assert header == "adapter,trainable_params,total_params,adapter_bytes,model_bytes,peak_tensor_bytes"
    assert int(full.split(",")[1]) == read["strategies"][0]["trainable_params"]


def test_memory_and_sent_bytes_of_one_of_several_devices(
    config_alone: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The short options and those of fit mean the same."""
    monkeypatch.setenv("COLUMNS", "250")
    arguments = [*config_alone, "--tokens", "16", "--data.batch_size", "2", "--device", "H100 80GB", "--no_search"]
    short = ["--devices", "2", "--nodes", "2", "--strategy", "fsdp2"]
    long = ["--trainer.devices", "2", "--trainer.num_nodes", "2", "--trainer.strategy", "fsdp2"]
    read = {}
    for name, given in (("short", short), ("long", long), ("ddp", ["--devices", "4"]), ("one", [])):
        assert main(["estimate", *arguments, *given, "--format", "json"]) == 0
        (read[name],) = json.loads(capsys.readouterr().out)["strategies"]
    assert read["short"] == read["long"]
    sharded, copied, one = read["short"], read["ddp"], read["one"]
    assert (sharded["devices"], sharded["strategy"]) == (4, "fsdp2")
    assert (copied["devices"], copied["strategy"]) == (4, "ddp")
    purposes = [f"{name}_bytes" for name in CATEGORIES]
    for row in (sharded, copied):
        assert sum(row[name] for name in purposes) == row["peak_tensor_bytes"]
        assert row["fits"] is True
    assert copied["sent_bytes_per_step"] == 2 * 3 / 4 * one["adapter_bytes"]
    assert not {"sent_bytes_per_step", "strategy", "largest_batch"} & one.keys()
    assert main(["estimate", *arguments, *short]) == 0
    output = capsys.readouterr().out
    assert "4 devices, fsdp2; memory, batch and sent bytes of one device" in output
    assert re.search(r"│ communication +│", output)
    assert "sent MiB per step" in output
    assert "largest batch" not in output


def test_a_model_that_cannot_run_on_meta_tensors_is_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Longformer reads the values of its attention mask."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    LongformerConfig(**sizes, vocab_size=50, attention_window=8).save_pretrained(tmp_path)
    arguments = [
        "estimate",
        "--config",
        "sst2",
        "--model",
        "SequenceClassification",
        "--model.model_name",
        str(tmp_path),
    ]
    arguments += ["--model.adapter", "LoRA", "--tokens", "16", "--data.batch_size", "2", "--device", "cpu"]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert f"model.model_name {tmp_path} with lora cannot be estimated" in error
    assert "--trainer.max_steps 3" in error
    assert error.count("\n") == 1
