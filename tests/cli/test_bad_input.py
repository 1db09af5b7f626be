"""Unusual files and options that fuzzing rarely generates: each either trains or is refused in one sentence."""

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
def run(tmp_path: Path, fit_arguments: list[str], capsys: pytest.CaptureFixture) -> Run:
    """Return a function that trains one step on a table, and returns the exit code and the error output."""

    def run(
        train: str | bytes, *more: str, val: str = table(ROWS), name: str = "train", folder: str = "run"
    ) -> tuple[int, str]:
        for path, text in {f"{name}.tsv": train, "val.tsv": val}.items():
            (tmp_path / path).write_bytes(text if isinstance(text, bytes) else text.encode())
        files = ["--data.train_file", str(tmp_path / f"{name}.tsv"), "--data.val_file", str(tmp_path / "val.tsv")]
        base = [word.replace("SST2", "TextClassification") for word in fit_arguments]
        code = main(
            [
                *base,
                *("--data.text_column", "sentence"),
                *files,
                *("--trainer.max_steps", "1", "--run_dir", str(tmp_path / folder)),
                *more,
            ]
        )
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


@pytest.mark.parametrize("kind", RUNS)
def test_unusual_but_valid_files_train(run: Run, tmp_path: Path, kind: str) -> None:
    train, more = RUNS[kind]
    val = table([("a", "日本"), ("b", "größer als")]) if more == ["names"] else table(ROWS)
    code, error = run(train, *(more if more != ["names"] else []), val=val)
    assert code == 0, error
    assert read_record(tmp_path / "run")["steps"] == 1


REFUSED: dict[str, tuple[str | bytes, list[str], str]] = {
    "an empty file": ("", [], "train.tsv: the file has no rows"),
    "a header alone": ("sentence\tlabel\n", [], "train.tsv: the file has no rows"),
    "an empty text": (table([("", "1"), *ROWS]), [], "train.tsv line 2: the text is empty"),
    "a text of spaces": (table([*ROWS, (" \u00a0 ", "1")]), [], "train.tsv line 10: the text is empty"),
    "an empty label": (table([("a", ""), *ROWS]), [], "train.tsv line 2: '': the label is missing; see data.label_column"),
    "one label": (table([("a", "1")] * 4), [], "have the same label, 1; two classes are needed"),
    "one row": (table(ROWS[:1]), [], "have the same label, 1; two classes are needed"),
    "a rank above all widths": (table(ROWS), ["--model.adapter", "LoRA", "--model.adapter.rank", "1000000000"], "model.adapter.rank 1000000000"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_unusable_files_and_options_are_refused(run: Run, tmp_path: Path, kind: str) -> None:
    train, more, message = REFUSED[kind]
    code, error = run(train, *more)
    assert code == 2, error
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_label_found_only_in_validation_rows_is_refused(run: Run) -> None:
    code, error = run(table(ROWS), val=table([*ROWS, ("new", "2")]))
    assert code == 2
    assert "val.tsv line 10: label '2' is not one of 0, 1" in error


def test_a_nul_byte_is_refused_in_an_option_but_not_in_a_table(run: Run, tmp_path: Path) -> None:
    code, error = run(table([("a\0b", "1"), *ROWS]))
    assert code in (0, 2), error
    (tmp_path / "nul.yaml").write_text(yaml.safe_dump({"data": {"init_args": {"cache_dir": "a\0b"}}}))
    code, error = run(table(ROWS), "--config", str(tmp_path / "nul.yaml"), folder="other")
    assert code == 2
    assert "data.cache_dir holds a NUL" in error


def test_names_of_files_and_folders_may_use_any_script(run: Run, tmp_path: Path) -> None:
    code, error = run(table(ROWS), name="Größe 日本", folder="läufe \U0001f600/é")
    assert code == 0, error
    assert read_record(tmp_path / "läufe \U0001f600" / "é")["config"]["data"]["init_args"]["train_file"].endswith(
        "日本.tsv"
    )


def test_an_experiment_name_that_is_not_utf8_is_refused(run: Run) -> None:
    code, error = run(table(ROWS), "--experiment", "a\udcff")
    assert code == 2
    assert "--experiment 'a\\udcff' is not UTF-8" in error


def test_an_output_path_that_is_not_utf8_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_run(tmp_path / "lora")
    for arguments in (["--output", f"{tmp_path}/\udcff"], [f"--output={tmp_path}/\udcff"]):
        assert main(["compare", str(tmp_path), *arguments]) == 2
        assert "\\udcff' is not UTF-8" in capsys.readouterr().err


def test_a_tokenizer_with_more_tokens_than_embeddings_is_refused(run: Run, tmp_path: Path, tiny_model: str) -> None:
    shutil.copytree(tiny_model, tmp_path / "model")
    tokenizer = json.loads((tmp_path / "model" / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["beyond"] = 25
    (tmp_path / "model" / "tokenizer.json").write_text(json.dumps(tokenizer))
    code, error = run(table([("beyond good", "1"), *ROWS]), "--model.model_name", str(tmp_path / "model"))
    assert code == 2, error
    assert "has token ids up to 25" in error
    assert "has only 25 embeddings" in error


def test_a_rank_as_large_as_a_layer_trains(run: Run, tmp_path: Path) -> None:
    code, error = run(table(ROWS), "--model.adapter", "LoRA", "--model.adapter.rank", "32")
    assert code == 0, error


VALUES = {
    "--model.adapter LoRA --model.adapter.alpha .inf": "model.adapter.alpha must be a finite number, got inf",
    "--model.adapter LoRA --model.adapter.alpha 1e400": "model.adapter.alpha must be a finite number, got inf",
    "--data.num_workers 99999999999999999999": "data.num_workers must be less than 1e+15",
    f"--data.batch_size -{'9' * 400}": "data.batch_size must be less than 1e+15 in size.",
    "--data ArithmeticInstructions --data.val_rows -3": "data.val_rows must be at least 1, got -3.",
    "--model.dtype null": "model.dtype must be Literal['bf16', 'fp16', 'fp32'], not null; leave it out for 'bf16'.",
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
def test_an_invalid_value_is_refused(run: Run, options: str) -> None:
    code, error = run(table(ROWS), *options.split())
    assert code == 2, error
    assert error.count("\n") == 1
    assert VALUES[options] in error


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--overwrite", "", "unknown argument '' after --overwrite, which takes no value."),
        ("--data.max_length", "&a [*a]", "data.max_length: it contains itself, or more than 1,000,000 values."),
        ("--data.cache_dir", "9" * 5000, "data.cache_dir has more than 4,300 digits, which no option takes."),
    ],
    ids=["empty", "itself", "digits"],
)
def test_an_extreme_argument_is_refused(run: Run, option: str, value: str, message: str) -> None:
    code, error = run(table(ROWS), option, value)
    assert (code, error) == (2, f"litpeft: error: {message}\n")


def test_a_mistake_in_a_file_of_a_finished_run_is_reported_with_the_file(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert run(table(ROWS))[0] == 0
    run_dir = str(tmp_path / "run")
    options = [run_dir, "--data.test_file", str(tmp_path / "val.tsv")]
    config, record = tmp_path / "run" / "config.yaml", tmp_path / "run" / "record.json"
    original = config.read_text()
    for changed, message in {
        "digits: 3\n": "unknown option digits",
        "throughput: 3\n": "throughput must hold options by name",
        "benchmarks: {keep_items: [1]}\n": "benchmarks.keep_items must be bool, got [1].",
    }.items():
        config.write_text(yaml.safe_dump(yaml.safe_load(original) | yaml.safe_load(changed)))
        assert main(["test", "--run_dir", *options]) == 2
        assert f"error: {config}: {message}" in capsys.readouterr().err
    config.write_text(original)
    record.write_text(record.read_text().replace('"memory_phases"', '"meemory_phases"'))
    before = record.read_bytes()
    for arguments in (["test", "--run_dir", *options], ["evaluate", run_dir, "--tasks", "held_out"]):
        assert main(arguments) == 2
        assert f"{record} holds 'meemory_phases', which is not a field of this version" in capsys.readouterr().err
    assert record.read_bytes() == before
    assert main(["validate", "--run_dir", run_dir]) == 0  # validate writes no record


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
def test_invalid_yaml_is_refused(run: Run, tmp_path: Path, text: str) -> None:
    (tmp_path / "odd.yaml").write_text(text)
    code, error = run(table(ROWS), "--config", str(tmp_path / "odd.yaml"))
    assert code == 2
    assert error.count("\n") == 1
    assert YAMLS[text] in error


def test_a_run_refused_while_loading_does_not_change_the_earlier_run(run: Run, tmp_path: Path) -> None:
    assert run(table(ROWS))[0] == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    code, error = run(table(ROWS), "--model.adapter", "LoRA", "--model.adapter.targets", "[foo]", "--overwrite")
    assert code == 2, error
    after = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert {path.name for path in before} == {path.name for path in after}
    assert all(after[path] == before[path] for path in before if path.name != ".lock")


def test_an_error_message_is_one_printable_line() -> None:
    assert one_line("a\n  b\x1b[31m\u202e \udcff é") == "a b\\x1b[31m\\u202e \\udcff é"
    assert len(one_line("x" * 10_000_000)) < 1000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": "3"}, "steps must be a whole number, not str"),
        ({"memory_phases": {"train": 3}}, "memory_phases.train must be a mapping"),
        ({"validations": [{"step": []}]}, "validations[0].step must be a number, not list"),
        ({"benchmarks": [{"step": 1, "seconds": 1, "skipped": {}}]}, "benchmarks[0] lacks results"),
        ({"benchmarks": [None]}, "benchmarks[0] must be a mapping"),
        ({"benchmarks": [{"step": 1, "results": {"a": None}}]}, "benchmarks[0].results.a must be a mapping"),
        ({"benchmarks": [{"step": 1, "results": {"a": {"scores": {}, "tasks": "b"}}}]}, "benchmarks[0].results.a.tasks must be a list"),
        ({"val_accuracy": 1e200}, "val_accuracy must be a number, but is too large"),
        ({"val_accuracy": 10**400}, "val_accuracy must be a number, but is too large"),  # no float is as large
        ({"train_loss": float("inf")}, "train_loss must be a number, but is too large"),
    ],
)  # fmt: skip
def test_a_record_with_an_invalid_value_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture, change: dict, message: str
) -> None:
    for adapter in ("lora", "dora"):
        write_run(tmp_path / adapter, adapter)
    record = json.loads((tmp_path / "lora" / "record.json").read_text())
    (tmp_path / "lora" / "record.json").write_text(json.dumps(record | change))
    for verb in (["compare"], ["report", "-o", str(tmp_path / "page.html")]):
        assert main([verb[0], str(tmp_path), *verb[1:]]) == 2
        assert f"lora/record.json is not a valid run record: {message}." in capsys.readouterr().err


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


def test_data_seeds_of_any_type_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for seed, data_seed in ((0, [1]), (1, None)):
        write_run(tmp_path / "lora" / str(seed), "lora", seed, options={"data.init_args.seed": data_seed})
    assert main(["compare", str(tmp_path)]) == 2
    assert "data.seed is [1] or none" in capsys.readouterr().err


def test_a_row_with_a_nan_loss_is_excluded_from_tests_over_examples(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for adapter in ("lora", "dora"):
        for seed in (0, 1):
            examples = {"loss": [0.1, None if adapter == "dora" else 0.2], "correct": [1, 0]}
            write_run(tmp_path / adapter / str(seed), adapter, seed, 0.8, None, examples)
    assert main(["compare", str(tmp_path), "--examples", "--figures", "val_loss", "--format", "markdown"]) == 0
    assert "val_loss of a row is NaN or infinite" in " ".join(capsys.readouterr().out.replace("\\", "").split())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question": {"a": 1}}, "question must be text, not dict"),
        ({"trials": [None]}, "trials[0] must be a mapping"),
        ({"published": {"source": [1], "rows": []}}, "published.source must be text, not list"),
    ],
)
def test_an_invalid_sweep_description_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture, change: dict, message: str
) -> None:
    sweep = {"experiment": "e", "axes": ["adapter"], "trials": [{"name": "lora", "label": "lora"}], "seeds": [0]}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep | change))
    assert main(["compare", str(tmp_path)]) == 2
    assert f"sweep.yaml is not a valid sweep description: {message}." in capsys.readouterr().err
