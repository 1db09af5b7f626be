"""Every task with every strategy: whatever counts as trained is trained, and the run is read back for predictions."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from litpeft.__main__ import main
from litpeft.runs.record import read_record
from tests.conftest import GOOD, REST
from tests.data.image_files import images_of, write_images, write_vision_model
from tests.sampling import quick
from tests.tasks.label_files import QUIET, multi_label, regression, rows_of

STRATEGIES = {
    "full": ["none"],
    "frozen": ["frozen"],
    "lora": ["lora"],
    "dora": ["dora"],
    "qlora-nf4": ["qlora-nf4"],
    "qlora-fp4": ["qlora-fp4"],
    "qdora-nf4": ["qdora-nf4"],
    "lora-int8": ["lora", "--model.base", "int8"],
    "ia3": ["ia3"],
}
TASKS = ["classes", "pairs", "numbers", "label sets", "images", "text", "instructions", "translations"]
READ_BACK = ("full", "dora", "qlora-nf4")  # strategies whose runs predict too
ALL = [(task, strategy) for task in TASKS for strategy in STRATEGIES]
SAMPLE = ALL[::2]  # as there is an odd number of strategies, each task has every second one, in turns
STEPS = 3


@pytest.fixture(scope="module")
def arguments(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: str, byte_llama: str, sentences: dict[str, str]
) -> dict[str, tuple[list[str], str]]:
    """Return by task the arguments of `litpeft fit`, and a file to predict."""
    folder = tmp_path_factory.mktemp("tasks")
    for name in ("numbers", "sets"):
        (folder / name).mkdir()
    pairs = "\n".join(json.dumps({"a": REST[i % 5], "b": GOOD[i % 5], "label": i % 2}) for i in range(32))
    (folder / "pairs.jsonl").write_text(pairs)
    (folder / "text.txt").write_text("\n\n".join(" ".join(REST[i % 7 :]) for i in range(40)))
    asked = [{"instruction": f"say {word}", "input": "", "output": word} for word in [*REST, *GOOD] * 2]
    (folder / "asked.json").write_text(json.dumps(asked))
    images = write_images(folder / "images")
    numbers, sets = regression(tiny_model, folder / "numbers"), multi_label(tiny_model, folder / "sets")

    def words(task: str, model: str, data: str, file: str, *options: str) -> list[str]:
        named = ["--model", task, "--model.model_name", model, "--model.dtype", "fp32", *QUIET]
        return [*named, "--data", data, "--data.train_file", file, "--data.val_file", file, *options]

    pair, asked, text = (str(folder / name) for name in ("pairs.jsonl", "asked.json", "text.txt"))
    short = ("--data.max_length", "32")  # bytes
    return {
        "classes": (words("SequenceClassification", tiny_model, "SST2", sentences["train"]), sentences["val"]),
        "pairs": (
            words("SequenceClassification", tiny_model, "TextClassification", pair, "--data.text_column", "[a,b]"),
            pair,
        ),
        "numbers": (numbers, str(folder / "numbers" / "val.jsonl")),
        "label sets": (sets, str(folder / "sets" / "val.jsonl")),
        "images": (images_of(write_vision_model(folder / "vit"), images, images), images),
        "text": (words("CausalLM", byte_llama, "Text", text, *short), text),
        "instructions": (words("CausalLM", byte_llama, "Alpaca", asked, "--data.max_length", "256"), asked),
        "translations": (
            words("Seq2SeqLM", tiny_t5(folder / "t5", tiny_model), "Alpaca", asked, "--data.max_length", "128"),
            asked,
        ),
    }


def tiny_t5(folder: Path, tokenizer_of: str) -> str:
    """Write a T5 with random weights and the tokenizer of another model to a folder, and return the folder."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer_of, eos_token="[SEP]")
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    config = T5Config(
        **sizes, vocab_size=len(tokenizer), eos_token_id=3, pad_token_id=0, decoder_start_token_id=0
    )  # fmt: skip
    T5ForConditionalGeneration(config).save_pretrained(folder)
    return str(folder)


def trained(run: Path, step: int) -> dict[str, torch.Tensor]:
    [folder] = run.glob(f"checkpoints/*step-{step:06d}")
    tensors = load_file(folder / "trainable.safetensors")
    return {name: tensor for name, tensor in tensors.items() if name != "peft_constants"}  # fixed tensors of PEFT


@pytest.mark.parametrize(("task", "strategy"), quick(ALL, SAMPLE))
def test_what_counts_as_trained_is_trained_and_read_back(
    task: str, strategy: str, arguments: dict[str, tuple[list[str], str]], tmp_path: Path
) -> None:
    words, to_predict = arguments[task]
    config, *options = STRATEGIES[strategy]
    options += ["--model.optimizer", "torch.optim.AdamW", "--model.optimizer.lr", "1e-2"]
    options += ["--checkpoint.keep", "all", "--checkpoint.every_n_steps", "1", "--trainer.max_steps", str(STEPS)]
    run = tmp_path / "run"
    fit = ["fit", "--config", config, *words, *options, "--run_dir", str(run)]
    if strategy == "frozen" and task in ("text", "instructions", "translations"):
        assert main(fit) == 2  # nothing would be trained
        return
    assert main(fit) == 0
    record = read_record(run)
    assert (record["status"], record["steps"]) == ("ok", STEPS)
    assert math.isfinite(record["val_loss"])
    first, last = trained(run, 1), trained(run, STEPS)
    assert record["trainable_params"] == sum(tensor.numel() for tensor in last.values())
    assert [name for name in last if torch.equal(first[name], last[name])] == []
    if strategy not in READ_BACK:
        return
    predictions = tmp_path / "predictions.jsonl"
    files = ["--data.predict_file", to_predict, "--predictions.file", str(predictions)]
    if task == "text":
        assert main(["validate", "--run_dir", str(run)]) == 0
        return
    assert main(["predict", "--run_dir", str(run), *files]) == 0
    assert rows_of(predictions)
