"""Causal and encoder-decoder tasks: loss and gradients, packing, generated answers, and complete runs."""

from __future__ import annotations

import json
import math
from pathlib import Path

import lightning as L
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BertConfig,
    BertLMHeadModel,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from litpeft.__main__ import main
from litpeft.adapters import Full, LoRA
from litpeft.adapters.base import trainable
from litpeft.data import Alpaca
from litpeft.errors import UserError
from litpeft.ops.attention import NAME
from litpeft.ops.head_loss import head_loss
from litpeft.runs.record import read_record
from litpeft.tasks import CausalLM, Seq2SeqLM
from tests.adapters.small_models import WIDE
from tests.conftest import QUIET

WORDS = [
    "the",
    "a",
    "of",
    "red",
    "blue",
    "green",
    "say",
    "repeat",
    "word",
    "and",
    "is",
    "what",
    "plus",
    "minus",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
]
MAKE = {
    "llama": lambda size: LlamaForCausalLM(
        LlamaConfig(
            vocab_size=size,
            **WIDE,
            num_key_value_heads=2,
            max_position_embeddings=128,
            tie_word_embeddings=True,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=1,
        )
    ),
    "gpt2": lambda size: GPT2LMHeadModel(
        GPT2Config(vocab_size=size, n_embd=32, n_layer=2, n_head=4, n_positions=128, bos_token_id=1, eos_token_id=1)
    ),
    "gemma2": lambda size: Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=size,
            **WIDE,
            num_key_value_heads=2,
            head_dim=8,
            final_logit_softcapping=0.1,
            pad_token_id=0,
            eos_token_id=1,
        )
    ),
    "t5": lambda size: T5ForConditionalGeneration(
        T5Config(
            vocab_size=size,
            d_model=32,
            d_kv=8,
            d_ff=64,
            num_layers=2,
            num_heads=4,
            eos_token_id=1,
            pad_token_id=0,
            decoder_start_token_id=0,
        )
    ),
}
TARGETS = {"llama": "all-linear", "gpt2": "all-linear", "gemma2": ["query"], "t5": ["query", "value"]}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return folders of tiny language models with thirty words."""
    root = tmp_path_factory.mktemp("language")
    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS, *".:#?!"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    for name, make in MAKE.items():
        torch.manual_seed(0)
        model = make(len(vocabulary))
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        for dropout in ("resid_pdrop", "embd_pdrop", "attn_pdrop", "dropout_rate"):
            if hasattr(model.config, dropout):
                setattr(model.config, dropout, 0.0)
        model.save_pretrained(root / name)
        special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=128, **special).save_pretrained(
            root / name
        )
    return {name: str(root / name) for name in MAKE}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a file of instructions with many lengths, one without a response."""
    path = tmp_path_factory.mktemp("rows") / "rows.json"
    draw = __import__("random").Random(0)
    made = []
    for i in range(40):
        words = draw.choices(WORDS[3:6], k=draw.randint(1, 9))
        given = " ".join(words) if i % 3 else ""
        made.append({"instruction": "repeat the word " + words[0], "input": given, "output": " ".join(words)})
    made.append({"instruction": "say what", "input": "", "output": ""})
    path.write_text(json.dumps(made))
    return str(path)


def task_of(name: str) -> type[CausalLM] | type[Seq2SeqLM]:
    return Seq2SeqLM if name == "t5" else CausalLM


def ready(folder: str, rows: str, name: str, adapter=None, **options):
    """Return a task with its model, its data set and a trainer."""
    L.seed_everything(0, verbose=False)
    data = Alpaca(
        tokenizer=folder,
        train_file=rows,
        batch_size=options.pop("batch_size", 8),
        val_samples=8,
        max_length=96,
        **options,
    )
    task = task_of(name)(folder, adapter or LoRA(rank=2, targets=TARGETS[name]), dtype="fp32")
    trainer = L.Trainer(max_steps=1, **QUIET)
    trainer.strategy._lightning_module = task
    task.trainer = data.trainer = trainer
    trainer.datamodule = data
    data.setup("fit")
    task.build(data, torch.device("cpu"))
    task.eval()
    with torch.no_grad():
        for parameter in trainable(task.backbone).values():
            parameter.add_(
                0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
            )
    return task, data


def gradients(task, total: torch.Tensor) -> dict[str, torch.Tensor]:
    task.zero_grad()
    total.backward()
    return {key: p.grad.clone() for key, p in trainable(task.backbone).items() if p.grad is not None}


@pytest.mark.parametrize("train_on", ["response", "prompt"])
@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("kind", [LoRA, Full])
def test_loss_and_gradients_equal_transformers(
    folders: dict[str, str], rows: str, name: str, kind: type, train_on: str
) -> None:
    adapter = LoRA(rank=2, targets=TARGETS[name]) if kind is LoRA else Full()
    task, data = ready(folders[name], rows, name, adapter, train_on=train_on)
    assert task._needs_full_logits == (name == "gemma2")  # gemma2 caps its logits after the head
    batch = data.rows["train"][[0, 5, 9, 12]]
    total, tokens = task.token_loss(batch)
    mine = gradients(task, total / tokens)
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask", "labels")}
    theirs = task.backbone(**inputs).loss
    assert (total / tokens).item() == pytest.approx(theirs.item(), rel=1e-5)
    for key, gradient in gradients(task, theirs).items():
        torch.testing.assert_close(mine[key], gradient, rtol=1e-4, atol=1e-6)


def test_a_model_that_sees_later_tokens_is_refused(folders: dict[str, str], rows: str, tmp_path: Path) -> None:
    size = len(AutoTokenizer.from_pretrained(folders["llama"]))
    config = BertConfig(vocab_size=size, **WIDE, max_position_embeddings=128, initializer_range=0.5)
    BertLMHeadModel(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(folders["llama"]).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="its tokens attend to later tokens, so it cannot predict them"):
        ready(str(tmp_path), rows, "llama", Full())


def test_only_the_response_and_its_end_have_loss(folders: dict[str, str], rows: str) -> None:
    _, data = ready(folders["llama"], rows, "llama")
    batch = data.rows["train"][[3]]
    row = int(batch["row"][0])
    labelled = batch["labels"][0][batch["labels"][0] >= 0]
    response = data.tokenizer.decode(labelled)
    assert response == data.table("train")[0]["answer"][row] + " </s>"
    assert torch.equal(batch["input_ids"][0][-len(labelled) :], labelled)
    everything = ready(folders["llama"], rows, "llama", train_on="prompt")[1].rows["train"][[3]]
    assert torch.equal(everything["labels"], everything["input_ids"])


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5"])
def test_one_batch_of_eight_equals_four_of_two(folders: dict[str, str], rows: str, name: str, tmp_path: Path) -> None:
    """With rows of different lengths, the mean over tokens is not the mean of the batches' means."""
    found = {}
    for size, times in ((8, 1), (2, 4)):
        L.seed_everything(0, verbose=False)
        data = Alpaca(
            tokenizer=folders[name], train_file=rows, train_samples=8, batch_size=size, val_samples=8, max_length=96
        )
        task = task_of(name)(folders[name], LoRA(rank=2, targets=TARGETS[name]), dtype="fp32", optimizer=_sgd)
        L.Trainer(max_steps=1, accumulate_grad_batches=times, limit_val_batches=0, **QUIET).fit(task, datamodule=data)
        found[size] = {key: p.detach() for key, p in trainable(task.backbone).items()}
    for key, tensor in found[8].items():
        torch.testing.assert_close(found[2][key], tensor, rtol=1e-5, atol=1e-7)


def test_the_gradients_of_each_step_are_means_over_its_own_tokens(folders: dict[str, str], rows: str) -> None:
    task, data = ready(folders["llama"], rows, "llama")
    task.log_train_loss = lambda loss, weight: weight
    for places in ([[0, 1, 2]], [[3], [4, 5]], [[6, 7]]):  # the batches of a step
        whole = [place for batch in places for place in batch]
        total, tokens = task.token_loss(data.rows["train"][whole])
        expected = gradients(task, total / tokens)
        task.zero_grad()
        task.trainer.accumulate_grad_batches = len(places)
        for number, batch in enumerate(places):
            (task.training_step(data.rows["train"][batch], number) / len(places)).backward()
        task.scale_gradients()
        for key, parameter in trainable(task.backbone).items():
            if key in expected:
                torch.testing.assert_close(parameter.grad, expected[key], rtol=1e-4, atol=1e-6)


def test_an_answer_is_right_if_it_is_the_response(folders: dict[str, str], rows: str) -> None:
    task, data = ready(folders["llama"], rows, "llama")
    task.generate_samples = 8
    responses = [response for _, _, texts in data.prompts("val", 8) for response in texts]
    said = iter([f" {text}\n" if place % 4 == 0 else f"{text} red" for place, text in enumerate(responses)])
    task.answers = lambda batch: [next(said) for _ in batch["input_ids"]]
    logged = {}
    task.log = lambda name, value, **_: logged.update({name: value})
    task._log_answers()
    assert logged == {"val_exact_match": 2 / 8}


def _sgd(groups):
    return torch.optim.SGD(groups, lr=1.0)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_packed_rows_have_the_loss_and_gradients_of_single_rows(folders: dict[str, str], rows: str, name: str) -> None:
    alone, data = ready(folders[name], rows, name)
    packed, bins = ready(folders[name], rows, name, packing=True)
    assert alone.backbone.config._attn_implementation == NAME  # in fp32 and in evaluation, it calls torch's SDPA
    encoded = bins.rows["train"]
    assert len(encoded) < len(data.rows["train"])
    assert encoded[range(len(encoded))]["input_ids"].shape[1] <= 96
    chosen = [0, 1, len(encoded) - 1]
    batch = encoded[chosen]
    members = [int(row) for number in chosen for row in encoded.bins[number]]
    assert int(batch["samples"]) == len(members)
    total, tokens = packed.token_loss(batch)
    apart, count = alone.token_loss(data.rows["train"][members])
    assert int(tokens) == int(count)
    assert total.item() == pytest.approx(apart.item(), rel=1e-5)
    expected = gradients(alone, apart)
    for key, gradient in gradients(packed, total).items():
        torch.testing.assert_close(
            gradient, expected[key], rtol=1e-3, atol=1e-5 * float(expected[key].abs().max()) + 1e-7
        )
    counts = packed.token_counts(batch)
    assert int(counts["tokens"]) == int(alone.token_counts(data.rows["train"][members])["tokens"])
    assert int(counts["trained"]) == int(tokens)


def test_every_row_is_in_one_bin_and_no_bin_overflows() -> None:
    from litpeft.data.packing import pack

    lengths = torch.randint(1, 65, (500,), generator=torch.Generator().manual_seed(0)).numpy()
    bins = pack(lengths, 64)
    assert sorted(row for rows in bins for row in rows) == list(range(500))
    assert max(lengths[rows].sum() for rows in bins) <= 64
    assert len(bins) <= -(-lengths.sum() // 64) * 1.02 + 1


@pytest.mark.parametrize("trained", [False, True])
def test_the_chunked_loss_equals_the_full_loss(trained: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("litpeft.ops.head_loss.CHUNK", 7 * 50)  # seven positions at a time
    torch.manual_seed(0)
    head = torch.nn.Linear(16, 50).double().requires_grad_(trained)
    hidden = torch.randn(23, 16, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(50, (23,))
    scale = 0.37
    loss = head_loss(hidden, labels, head, 50)
    (loss * scale).backward()
    mine = [hidden.grad.clone(), *(p.grad.clone() for p in head.parameters() if trained)]
    hidden.grad = None
    head.zero_grad()
    expected = F.cross_entropy(head(hidden).float(), labels, reduction="sum")
    torch.testing.assert_close(loss, expected)
    (expected * scale).backward()
    theirs = [hidden.grad, *(p.grad for p in head.parameters() if trained)]
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_a_loss_without_gradients_computes_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without gradients, as in validation, with a head that trains."""
    head, hidden = torch.nn.Linear(16, 50), torch.randn(23, 16, requires_grad=True)
    labels = torch.randint(50, (23,))
    monkeypatch.setattr(torch.autograd, "grad", lambda *_, **__: pytest.fail("a gradient was worked out"))
    with torch.no_grad():
        loss = head_loss(hidden, labels, head, 50)
    torch.testing.assert_close(loss, F.cross_entropy(head(hidden), labels, reduction="sum").detach())


def test_a_batch_without_labels_has_zero_loss(folders: dict[str, str], rows: str) -> None:
    task, data = ready(folders["llama"], rows, "llama")
    batch = data.rows["train"][[0, 1]]
    batch["labels"][:] = -100
    total, tokens = task.token_loss(batch)
    assert (total.item(), int(tokens), task.loss(batch).item()) == (0.0, 0, 0.0)


@pytest.mark.parametrize("name", MAKE)
def test_batched_answers_equal_single_answers_of_transformers(folders: dict[str, str], rows: str, name: str) -> None:
    task, data = ready(folders[name], rows, name)
    answers, prompts = [], []
    for batch, asked, _ in data.prompts("val", 5):
        answers += task.answers(batch)
        prompts += [ids[mask.bool()] for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
        assert len(asked) == len(batch["row"])
    for answer, prompt in zip(answers, prompts, strict=True):
        out = task.backbone.generate(prompt[None], max_new_tokens=64, do_sample=False, use_cache=True, pad_token_id=0)
        alone = out[0] if name == "t5" else out[0][len(prompt) :]
        assert answer == data.tokenizer.decode(alone, skip_special_tokens=True)


def run(folder: str, rows: str, name: str, run_dir: Path, *options: str) -> int:
    arguments = ["fit", "--model", task_of(name).__name__, "--model.model_name", folder, "--model.dtype", "fp32"]
    arguments += ["--data", "Alpaca", "--data.train_file", rows, "--data.val_samples", "8", "--data.max_length", "96"]
    adapter = (
        [] if "--model.adapter" in options else ["--model.adapter", "LoRA", "--model.adapter.targets", "all-linear"]
    )
    arguments += ["--data.batch_size", "4", *adapter]
    arguments += ["--model.optimizer", "torch.optim.AdamW", "--model.optimizer.lr", "1e-2"]
    arguments += ["--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu", "--run_dir", str(run_dir)]
    return main([*arguments, *options])


@pytest.mark.parametrize("name", ["llama", pytest.param("gpt2", marks=pytest.mark.whole), "t5"])
def test_a_run_learns_records_shows_answers_and_predicts(
    folders: dict[str, str], rows: str, name: str, tmp_path: Path
) -> None:
    options = ["--model.generate_samples", "8", "--model.max_new_tokens", "12", "--trainer.max_epochs", "12"]
    options += ["--model.adapter", "Full"]
    assert run(folders[name], rows, name, tmp_path / "run", *options) == 0
    record = read_record(tmp_path / "run")
    assert record["status"] == "ok"
    assert record["data_summary"]["tables"]["train"]["empty_responses_dropped"] == 1
    assert record["val_loss"] < 2.0  # ln 28 is 3.3
    assert record["other_metrics"]["val_perplexity"] == pytest.approx(2.718281828 ** record["val_loss"], rel=1e-4)
    assert 0 <= record["other_metrics"]["val_exact_match"] <= 1
    assert record["trained_tokens_per_second"] < record["train_tokens_per_second"] <= record["padded_tokens_per_second"]
    events = EventAccumulator(str(tmp_path / "run"), size_guidance={"tensors": 0})
    events.Reload()
    shown = events.Tensors("answers/text_summary")
    assert len(shown) == 12
    assert b"expected: " in shown[-1].tensor_proto.string_val[0]
    file = tmp_path / "ask.json"
    file.write_text(json.dumps([{"instruction": "repeat the word red"}, {"instruction": "say what", "input": "blue"}]))
    arguments = ["predict", "--run_dir", str(tmp_path / "run"), "--data.predict_file", str(file)]
    assert main([*arguments, "--trainer.enable_progress_bar", "false"]) == 0
    answers = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    assert [line["text"] for line in answers] == ["repeat the word red", "say what\n\nblue"]
    assert all("response" in line for line in answers)


@pytest.mark.parametrize("by_row", [False, True])
@pytest.mark.parametrize("name", ["llama", "t5"])
def test_validation_loss_is_the_mean_over_all_tokens(
    folders: dict[str, str], rows: str, name: str, by_row: bool
) -> None:
    """Whatever the batch size: rows have different lengths, so the mean of the batches' means is another number."""
    task, data = ready(folders[name], rows, name)
    total, tokens, by_number = 0.0, 0, {}
    with torch.no_grad():
        for place, row in enumerate(data.rows["val"].rows.tolist()):
            batch = data.rows["val"][[place]]
            inputs = {key: batch[key] for key in ("input_ids", "attention_mask", "labels")}
            count = int((batch["labels"][:, task.label_shift :] != -100).sum())
            by_number[row] = float(task.backbone(**inputs).loss)
            total, tokens = total + by_number[row] * count, tokens + count
        expected = total / tokens
        assert abs(expected - sum(by_number.values()) / len(by_number)) > 1e-3
        task.setup("fit")
        task.return_row_results = by_row
        logged: dict[str, float] = {}
        task.log_dict = lambda figures, **_: logged.update({key: float(value) for key, value in figures.items()})
        for size in (8, 3, 1, 8):  # each validation starts again
            data.batch_size = size
            for number, batch in enumerate(data.val_dataloader()):
                found = task.validation_step(task.on_before_batch_transfer(batch, 0), number)
                if by_row:
                    losses = [by_number[row] for row in batch["row"].tolist()]
                    assert found["loss"].tolist() == pytest.approx(losses, rel=1e-4)
            task.on_validation_epoch_end()
            assert logged["val_loss"] == pytest.approx(expected, rel=1e-5)
            assert logged["val_perplexity"] == pytest.approx(math.exp(expected), rel=1e-5)


@pytest.mark.whole  # tests/ops/test_compiled_blocks.py has the mathematics
def test_compiled_blocks_give_the_same_losses(folders: dict[str, str], rows: str, tmp_path: Path) -> None:
    options = ["--trainer.max_steps", "3", "--model.adapter.dropout", "0"]
    assert run(folders["llama"], rows, "llama", tmp_path / "eager", *options) == 0
    assert run(folders["llama"], rows, "llama", tmp_path / "compiled", *options, "--model.compile_blocks", "true") == 0
    eager, compiled = (read_record(tmp_path / name) for name in ("eager", "compiled"))
    assert compiled["train_loss"] == pytest.approx(eager["train_loss"], rel=1e-4)
    assert compiled["val_loss"] == pytest.approx(eager["val_loss"], rel=1e-4)


@pytest.mark.parametrize("adapter", ["DoRA", "QLoRA", "QDoRA", "Full"])
def test_every_strategy_trains_packed_with_accumulation(
    folders: dict[str, str], rows: str, adapter: str, tmp_path: Path
) -> None:
    options = ["--model.adapter", adapter, *([] if adapter == "Full" else ["--model.adapter.targets", "all-linear"])]
    options += ["--data.packing", "true", "--trainer.accumulate_grad_batches", "2", "--trainer.max_epochs", "2"]
    arguments = ["fit", "--model", "CausalLM", "--model.model_name", folders["llama"], "--data", "Alpaca"]
    arguments += [
        "--data.train_file",
        rows,
        "--data.val_samples",
        "8",
        "--data.max_length",
        "96",
        "--data.batch_size",
        "2",
    ]
    arguments += ["--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu", "--run_dir", str(tmp_path)]
    assert main([*arguments, *options]) == 0
    record = read_record(tmp_path)
    assert record["data_summary"]["packed_rows"]["train"] < 32
    assert record["status"] == "ok"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data.template", "chat"], "data.template chat: the tokenizer"),
        (
            ["--data.template", "nowhere.yaml"],
            "data.template nowhere.yaml: there is no such file; give a file, Jinja text, or one of auto, chat, alpaca",
        ),
        (["--data.instruction_column", "ask"], "no column 'ask'"),
        (["--data.max_length", "8"], "data.max_length 8 leaves no response in any of the"),
        (["--model.max_new_tokens", "0"], "model.max_new_tokens must be at least 1"),
        (["--model", "Seq2SeqLM"], "cannot be loaded"),
    ],
)
def test_an_error_is_one_sentence(
    folders: dict[str, str], rows: str, options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert run(folders["llama"], rows, "llama", tmp_path / "run", *options) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_template_file_fills_only_its_placeholders(folders: dict[str, str], tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from litpeft.data.templates import ALPACA, find_template

    def prompt(instruction: str, given: str) -> str:
        return template.prompt([{"role": "user", "content": "", "instruction": instruction, "input": given}])

    file = tmp_path / "own.yaml"
    file.write_text("prompt_input: '{x} {instruction} | {input} >'\nprompt_no_input: 'Q {instruction} A'\n")
    tokenizer = AutoTokenizer.from_pretrained(folders["llama"])
    template, _ = find_template(str(file), tokenizer)
    assert prompt("a {input} b", "") == "Q a {input} b A"
    assert prompt("say {instruction}", "it {instruction}") == "{x} say {instruction} | it {instruction} >"
    template, _ = find_template("alpaca", tokenizer)
    assert prompt("Do.", "it") == ALPACA["prompt_input"].format(instruction="Do.", input="it")


def test_merged_language_models_are_loaded_by_transformers(folders: dict[str, str], rows: str, tmp_path: Path) -> None:
    for name, auto in (("llama", AutoModelForCausalLM), ("t5", AutoModelForSeq2SeqLM)):
        targets = ["--model.adapter.targets", "[query,embed_tokens]" if name == "llama" else "[query]"]
        assert run(folders[name], rows, name, tmp_path / name, *targets, "--trainer.max_steps", "3") == 0
        out = tmp_path / f"{name}-merged"
        assert main(["export", str(tmp_path / name), str(out), "--format", "merged"]) == 0
        model = auto.from_pretrained(out)
        tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
        assert tied == (name == "t5")  # an adapter on the embeddings unties them from the head


def test_answers_without_a_data_module_are_refused_before_training(tiny_llama: str) -> None:
    batch = {name: torch.ones(1, 4, dtype=torch.int64) for name in ("input_ids", "attention_mask", "labels")}
    rows = torch.utils.data.DataLoader([batch], batch_size=None)
    task = CausalLM(tiny_llama, generate_samples=2)
    with pytest.raises(UserError, match=r"^model\.generate_samples needs a data module of litpeft; leave it out "):
        L.Trainer(max_steps=1, **QUIET).fit(task, rows, rows)
