"""Odd files and options that no fuzzer would hit upon: each either trains as it should or is refused in one sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from litpeft.__main__ import main
from litpeft.errors import one_line
from litpeft.runs.record import read_record
from tests.analysis.comparison.build import write_run

ROWS = [("good film", "1"), ("bad film", "0")] * 4
Run = Callable[..., tuple[int, str]]


def table(rows: list[tuple[str, str]], end: str = "\n", last: bool = True) -> str:
    return end.join(["sentence\tlabel", *("\t".join(row) for row in rows)]) + (end if last else "")


@pytest.fixture
def run(tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture) -> Run:
    """Trains one step on a table; its exit code, and what it said."""

    def run(
        train: str | bytes, *more: str, val: str = table(ROWS), name: str = "train", folder: str = "run"
    ) -> tuple[int, str]:
        for path, text in {f"{name}.tsv": train, "val.tsv": val}.items():
            (tmp_path / path).write_bytes(text if isinstance(text, bytes) else text.encode())
        given = ["--data.train_file", str(tmp_path / f"{name}.tsv"), "--data.val_file", str(tmp_path / "val.tsv")]
        own = [word.replace("SST2", "TextClassification") for word in words] + ["--data.text_column", "sentence"]
        code = main([*own, *given, "--trainer.max_steps", "1", "--run_dir", str(tmp_path / folder), *more])
        return code, capsys.readouterr().err

    return run


RUNS: dict[str, tuple[str | bytes, list[str]]] = {
    "texts of all scripts": (table([("Größe 日本語 \u202e\u05e2\u05d1 \U0001f600 e\u0301", "1"), ("\u200bzero\u2028width", "0")] * 4), []),
    "labels of all scripts": (table([("a", "日本"), ("b", "größer als")] * 4), ["names"]),
    "texts of a megabyte": (table([("word " * 100_000, "1"), ("w" * 1_000_000, "1"), *ROWS]), []),
    "a byte-order mark, CRLF and no newline at the end": (b"\xef\xbb\xbf" + table(ROWS, "\r\n", last=False).encode(), []),
    "two rows and a batch above them": (table(ROWS[:2]), ["--data.batch_size", "1000"]),
    "a text that is no word of the model": (table([("???", "1"), ("!!!", "0")] * 4), []),
}  # fmt: skip


@pytest.mark.parametrize("what", RUNS)
def test_what_is_odd_but_right_trains(run: Run, tmp_path: Path, what: str) -> None:
    train, more = RUNS[what]
    val = table([("a", "日本"), ("b", "größer als")]) if more == ["names"] else table(ROWS)
    code, said = run(train, *(more if more != ["names"] else []), val=val)
    assert code == 0, said
    assert read_record(tmp_path / "run")["steps"] == 1


REFUSED: dict[str, tuple[str | bytes, list[str], str]] = {
    "an empty file": ("", [], "train.tsv: the file has no rows"),
    "a header alone": ("sentence\tlabel\n", [], "train.tsv: the file has no rows"),
    "an empty text": (table([("", "1"), *ROWS]), [], "train.tsv line 2: the text is empty"),
    "a text of spaces": (table([*ROWS, (" \u00a0 ", "1")]), [], "train.tsv line 10: the text is empty"),
    "an empty label": (table([("a", ""), *ROWS]), [], "train.tsv line 2: '' is not a label; see data.label_column"),
    "one label": (table([("a", "1")] * 4), [], "have the same label, 1; two classes are needed"),
    "one row": (table(ROWS[:1]), [], "have the same label, 1; two classes are needed"),
    "a rank above all widths": (table(ROWS), ["--model.adapter", "LoRA", "--model.adapter.rank", "1000000000"], "model.adapter.rank 1000000000"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_trained_on_is_told(run: Run, tmp_path: Path, what: str) -> None:
    train, more, told = REFUSED[what]
    code, said = run(train, *more)
    assert code == 2, said
    assert said.count("\n") == 1
    assert told in said
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_label_that_only_validation_has_is_told(run: Run) -> None:
    code, said = run(table(ROWS), val=table([*ROWS, ("new", "2")]))
    assert code == 2
    assert "val.tsv line 10: label '2' is not one of 0, 1" in said


def test_a_nul_byte_is_text_in_a_table_and_none_in_an_option(run: Run, tmp_path: Path) -> None:
    code, said = run(table([("a\0b", "1"), *ROWS]))
    assert code in (0, 2), said
    (tmp_path / "nul.yaml").write_text(yaml.safe_dump({"data": {"init_args": {"cache_dir": "a\0b"}}}))
    code, said = run(table(ROWS), "--config", str(tmp_path / "nul.yaml"), folder="other")
    assert code == 2
    assert "data.cache_dir holds a NUL" in said


def test_names_of_files_and_folders_of_all_scripts(run: Run, tmp_path: Path) -> None:
    code, said = run(
        table(ROWS),
        name="Größe 日本",
        folder="läufe \U0001f600/é",
    )
    assert code == 0, said
    assert read_record(tmp_path / "läufe \U0001f600" / "é")["config"]["data"]["init_args"]["train_file"].endswith(
        "日本.tsv"
    )


def test_a_name_that_is_not_utf8_is_told(run: Run) -> None:
    code, said = run(table(ROWS), "--experiment", "a\udcff")
    assert code == 2
    assert "--experiment 'a\\udcff' is not UTF-8" in said


def test_an_output_that_is_not_utf8_is_told(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_run(tmp_path / "lora")
    for words in (["--output", f"{tmp_path}/\udcff"], [f"--output={tmp_path}/\udcff"]):
        assert main(["compare", str(tmp_path), *words]) == 2
        assert "\\udcff' is not UTF-8" in capsys.readouterr().err


def test_a_tokenizer_with_more_tokens_than_the_model_has_rows_is_told(
    run: Run, tmp_path: Path, tiny_model: str
) -> None:
    shutil.copytree(tiny_model, tmp_path / "model")
    tokenizer = json.loads((tmp_path / "model" / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["beyond"] = 25
    (tmp_path / "model" / "tokenizer.json").write_text(json.dumps(tokenizer))
    code, said = run(table([("beyond good", "1"), *ROWS]), "--model.model_name", str(tmp_path / "model"))
    assert code == 2, said
    assert "has token ids up to 25" in said
    assert "has only 25 embeddings" in said


def test_a_rank_as_large_as_a_layer_trains(run: Run, tmp_path: Path) -> None:
    code, said = run(table(ROWS), "--model.adapter", "LoRA", "--model.adapter.rank", "32")
    assert code == 0, said


VALUES = {
    "--model.adapter LoRA --model.adapter.alpha .inf": "model.adapter.alpha must be a finite number, got inf",
    "--model.adapter LoRA --model.adapter.alpha 1e400": "model.adapter.alpha must be a finite number, got inf",
    "--data.num_workers 99999999999999999999": "data.num_workers must be less than 1e+15",
    f"--data.batch_size -{'9' * 400}": "data.batch_size must be less than 1e+15 in size.",
    "--data ArithmeticInstructions --data.val_rows -3": "data.val_rows must be at least 1, got -3.",
    "--model.dtype null": "model.dtype must be Literal['bf16', 'fp32'], not null; leave it out for 'bf16'.",
    "--trainer [1]": "trainer must hold options by name",
    "--trainer.max_steps null": "trainer.max_steps must be int, got None.",
    "--data FineTuneData": "data: FineTuneData is an abstract base class; name one of AGNews, ",
    "--model.adapter litpeft.adapters.base.Adapter": "model.adapter: Adapter is an abstract base class",
    "--model.adapter.layers {}": "model.adapter: Adapter is an abstract base class; name one of ",
    "--data.train_samples -2e3": "data.train_samples must be int",
    "--data.batch_size null": "data.batch_size must be int, not null; leave it out for 32.",
    "--model.adapter {0}": "--model.adapter: 0 is not an option name",
    "--overwrite 0.8": "unknown argument '0.8' after --overwrite, which takes no value.",
    "--data.max_length 5 6": "unknown argument '6' after --data.max_length.",
    "--model.scheduler.warmup --": "--model.scheduler.warmup needs a value before --.",
    "--model.scheduler.warmup": "--model.scheduler.warmup needs a value.",
    "--data.delimiter ;": "no column 'sentence'; it has: sentence\\tlabel (see data.text_column, data.delimiter and",
    "--trainer.max_time no": "trainer.max_time must be DAYS:HOURS:MINUTES:SECONDS (00:12:00:00), got 'no'.",
    "--trainer.val_check_interval 33": "trainer.val_check_interval: `val_check_interval` (33) must be less than or",
}


@pytest.mark.parametrize("options", VALUES)
def test_a_value_that_nothing_can_take_is_told(run: Run, options: str) -> None:
    code, said = run(table(ROWS), *options.split())
    assert code == 2, said
    assert said.count("\n") == 1
    assert VALUES[options] in said


@pytest.mark.parametrize(
    ("option", "word", "told"),
    [
        ("--overwrite", "", "unknown argument '' after --overwrite, which takes no value."),
        ("--data.max_length", "&a [*a]", "data.max_length: it contains itself, or more than 1,000,000 values."),
        ("--data.cache_dir", "9" * 5000, "data.cache_dir has more than 4,300 digits, which no option takes."),
    ],
    ids=["empty", "itself", "digits"],
)
def test_a_word_that_is_hardly_one_is_told(run: Run, option: str, word: str, told: str) -> None:
    code, said = run(table(ROWS), option, word)
    assert (code, said) == (2, f"litpeft: error: {told}\n")


def test_what_is_wrong_in_the_files_of_a_finished_run_is_told_with_the_file(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert run(table(ROWS))[0] == 0
    verb = [str(tmp_path / "run"), "--data.test_file", str(tmp_path / "val.tsv")]
    config, record = tmp_path / "run" / "config.yaml", tmp_path / "run" / "record.json"
    kept = config.read_text()
    for changed, told in {
        "digits: 3\n": "unknown option digits",
        "throughput: 3\n": "throughput must hold options by name",
        "benchmarks: {keep_items: [1]}\n": "benchmarks.keep_items must be bool, got [1].",
    }.items():
        config.write_text(yaml.safe_dump(yaml.safe_load(kept) | yaml.safe_load(changed)))
        assert main(["test", "--run_dir", *verb]) == 2
        assert f"error: {config}: {told}" in capsys.readouterr().err
    config.write_text(kept)
    record.write_text(record.read_text().replace('"memory_phases"', '"meemory_phases"'))
    before = record.read_bytes()
    for words in (["test", "--run_dir", *verb], ["evaluate", verb[0], "--tasks", "held_out"]):
        assert main(words) == 2
        assert f"{record} holds 'meemory_phases', which is not a field of this version" in capsys.readouterr().err
    assert record.read_bytes() == before
    assert main(["validate", "--run_dir", verb[0]]) == 0  # which writes nothing


YAMLS = {
    "model: \0": "line 1: not valid YAML: ",
    "a: 1\nb: &x [*x]\n": "it contains itself, or more than",
    "a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(f"{y}: &{y} [{','.join(['*' + x] * 10)}]\n" for x, y in zip("abcdefg", "bcdefgh", strict=True)): "it contains itself, or more than",
    "seed_everything: " + "9" * 5000: "not valid YAML: Exceeds the limit",
    "a: 2001-13-45": "not valid YAML: month must be in 1..12",
    "model: {init_args: [1]}": "model",
    "'': 1": "'' is not an option name",
    'trainer: "\\0"': "trainer holds a NUL",
    "[" * 100_000: "not valid YAML",
}  # fmt: skip


@pytest.mark.parametrize("text", YAMLS, ids=range(len(YAMLS)))
def test_yaml_that_no_one_should_write_is_told(run: Run, tmp_path: Path, text: str) -> None:
    (tmp_path / "odd.yaml").write_text(text)
    code, said = run(table(ROWS), "--config", str(tmp_path / "odd.yaml"))
    assert code == 2
    assert said.count("\n") == 1
    assert YAMLS[text] in said


def test_a_run_that_is_refused_while_it_loads_leaves_an_earlier_one_as_it_was(run: Run, tmp_path: Path) -> None:
    assert run(table(ROWS))[0] == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    code, said = run(table(ROWS), "--model.adapter", "LoRA", "--model.adapter.targets", "[foo]", "--overwrite")
    assert code == 2, said
    after = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert {path.name for path in before} == {path.name for path in after}
    assert all(after[path] == before[path] for path in before if path.name != ".lock")


def test_a_sentence_is_one_line_whatever_it_quotes() -> None:
    assert one_line("a\n  b\x1b[31m\u202e \udcff é") == "a b\\x1b[31m\\u202e \\udcff é"
    assert len(one_line("x" * 10_000_000)) < 1000


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"steps": "3"}, "steps must be a whole number, not str"),
        ({"memory_phases": {"train": 3}}, "memory_phases.train must be a mapping"),
        ({"validations": [{"step": []}]}, "validations[0].step must be a number, not list"),
        ({"benchmarks": [{"step": 1, "seconds": 1, "skipped": {}}]}, "benchmarks[0] lacks results"),
        ({"benchmarks": [None]}, "benchmarks[0] must be a mapping"),
        ({"benchmarks": [{"step": 1, "results": {"a": None}}]}, "benchmarks[0].results.a must be a mapping"),
        ({"benchmarks": [{"step": 1, "results": {"a": {"scores": {}, "tasks": "b"}}}]}, "benchmarks[0].results.a.tasks must be a list"),
        ({"val_accuracy": 1e200}, "val_accuracy must be a number, but is too large"),
        ({"train_loss": float("inf")}, "train_loss must be a number, but is too large"),
    ],
)  # fmt: skip
def test_a_record_that_was_changed_by_hand_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture, change: dict, told: str
) -> None:
    for adapter in ("lora", "dora"):
        write_run(tmp_path / adapter, adapter)
    record = json.loads((tmp_path / "lora" / "record.json").read_text())
    (tmp_path / "lora" / "record.json").write_text(json.dumps(record | change))
    for verb in (["compare"], ["report", "-o", str(tmp_path / "page.html")]):
        assert main([verb[0], str(tmp_path), *verb[1:]]) == 2
        assert f"lora/record.json is not a valid run record: {told}." in capsys.readouterr().err


def test_a_record_of_an_earlier_version_is_read(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    early = [{"step": 0, "results": {"a": {"scores": {"acc": 0.5}}}}]
    null = {"step_split_seconds_p50": {"forward": None}, "memory_phases": {"a": {"peak_tensor_bytes": None}, "b": {}}}
    for adapter in ("lora", "dora"):
        for seed in (0, 1):
            write_run(tmp_path / adapter / str(seed), adapter, seed, benchmarks=early, **null)
    evaluation = read_record(tmp_path / "lora" / "0")["benchmarks"][0]
    assert evaluation["results"]["a"]["tasks"] == []
    assert evaluation["seconds"] is None
    assert main(["compare", str(tmp_path), "--figures", "val_accuracy,a_acc"]) == 0
    assert main(["report", str(tmp_path), "-o", str(tmp_path / "page.html")]) == 0


def test_a_data_seed_of_any_kind_is_compared(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for seed, own in ((0, [1]), (1, None)):
        write_run(tmp_path / "lora" / str(seed), "lora", seed, options={"data.init_args.seed": own})
    assert main(["compare", str(tmp_path)]) == 2
    assert "data.seed is [1] or none" in capsys.readouterr().err


def test_a_row_that_gave_no_number_is_left_out_of_the_tests_over_examples(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for adapter in ("lora", "dora"):
        for seed in (0, 1):
            kept = {"loss": [0.1, None if adapter == "dora" else 0.2], "correct": [1, 0]}
            write_run(tmp_path / adapter / str(seed), adapter, seed, 0.8, None, kept)
    assert main(["compare", str(tmp_path), "--examples", "--figures", "val_loss", "--format", "markdown"]) == 0
    assert "val_loss of a row is NaN or infinite" in " ".join(capsys.readouterr().out.replace("\\", "").split())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"question": {"a": 1}}, "question must be text, not dict"),
        ({"trials": [None]}, "trials[0] must be a mapping"),
        ({"published": {"source": [1], "rows": []}}, "published.source must be text, not list"),
    ],
)
def test_a_description_of_a_sweep_that_is_none_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture, change: dict, told: str
) -> None:
    sweep = {"experiment": "e", "axes": ["adapter"], "trials": [{"name": "lora", "label": "lora"}], "seeds": [0]}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep | change))
    assert main(["compare", str(tmp_path)]) == 2
    assert f"sweep.yaml is not a valid sweep description: {told}." in capsys.readouterr().err
