"""Streams: the rows of the prepared table in the same order, exact resume, and what a stream cannot do is refused."""

from __future__ import annotations

import gzip
import itertools
import json
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn
from pyarrow import parquet

from litpeft.__main__ import main
from litpeft.data import Conversations, FineTuneData, Text, TextClassification, TextMultiLabel
from litpeft.data.stream_blocks import Blocks
from litpeft.data.stream_loader import StreamLoader
from litpeft.data.told import tell
from litpeft.errors import UserError
from litpeft.runs.record import read_record
from tests.conftest import write_sentences
from tests.data.test_conversations import tokenizer
from tests.data.test_text_classification import make

ROWS = [
    {
        "prompt": f"What is {'one ' * (i % 7)}?",
        "response": f"It is {i}." * (1 + i % 5),
        "text": f"the cat {i} " * (i % 9 + 1),
    }
    for i in range(53)
]
LABELS = [{"a": f"the film {'was ' * (i % 5)}", "b": "very good", "label": ("bad", "good")[i % 2]} for i in range(53)]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def chat_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer("bytes", folder)
    return str(folder)


def options(kind: type, folder: Path, chat_tokenizer: str, tiny_model: str) -> dict[str, Any]:
    """Return options of a data set of this kind with 53 training rows and 5 validation rows."""
    if kind is TextClassification:
        files = {
            "train_file": write(folder / "train.jsonl", LABELS),
            "val_file": write(folder / "val.jsonl", LABELS[:5]),
        }
        return files | {"tokenizer": tiny_model, "text_column": ["a", "b"], "label_names": ["bad", "good"]}
    files = {"train_file": write(folder / "train.jsonl", ROWS), "val_file": write(folder / "val.jsonl", ROWS[:5])}
    return files | {"tokenizer": chat_tokenizer, "max_length": 60}


def tokens_of(batches: Any) -> list[list[int]]:
    """Return the token ids of each row, without padding, in the order of the batches; labels follow."""
    found = []
    for batch in batches:
        for number, ids in enumerate(batch["input_ids"]):
            length = int(batch["attention_mask"][number].sum())
            labels = batch["labels"][number]
            found.append([*ids[:length].tolist(), *(labels[:length].tolist() if labels.dim() else [int(labels)])])
    return found


def table_rows(data: FineTuneData) -> list[list[int]]:
    """Return the training rows of a prepared data set as `tokens_of` does, in the order of the file."""
    rows = data.rows["train"]
    return tokens_of(rows[[number]] for number in range(len(rows)))


KINDS = [(Conversations, {}), (Text, {"packing": False}), (TextClassification, {})]


@pytest.mark.parametrize(("kind", "more"), KINDS)
def test_without_shuffling_the_rows_are_those_of_the_prepared_table_in_their_order(
    kind: type, more: dict[str, Any], tmp_path: Path, chat_tokenizer: str, tiny_model: str
) -> None:
    given = options(kind, tmp_path, chat_tokenizer, tiny_model) | more | {"batch_size": 4}
    expected = table_rows(make(kind, **given))
    data = make(kind, **given, streaming=True, shuffle_buffer=0)
    count = 2 * len(expected) // 4  # two passes; every batch is whole
    batches = list(itertools.islice(data.train_dataloader(), count))
    assert {len(batch["input_ids"]) for batch in batches} == {4}
    found = tokens_of(batches)
    assert found == (expected * 2)[: len(found)]
    assert data.measured()["stream"]["rows_trained"] == 4 * count


@pytest.mark.parametrize(("kind", "more"), [*KINDS, (Text, {"packing": True}), (Conversations, {"packing": True})])
def test_each_pass_has_each_row_once_and_workers_change_nothing(
    kind: type, more: dict[str, Any], tmp_path: Path, chat_tokenizer: str, tiny_model: str
) -> None:
    given = options(kind, tmp_path, chat_tokenizer, tiny_model) | more | {"batch_size": 3, "seed": 1}

    def batches(**other: Any) -> list[dict[str, torch.Tensor]]:
        data = make(kind, **given | {"streaming": True, "shuffle_buffer": 20} | other)
        return list(itertools.islice(data.train_dataloader(), 40))

    one = batches()
    assert same(one, batches())
    assert not same(one, batches(seed=2))
    assert same(one, batches(num_workers=2))
    assert {len(batch["input_ids"]) for batch in one} == {3}
    if more.get("packing"):
        assert max(batch["input_ids"].shape[1] for batch in one) <= 60
        return
    rows, found = table_rows(make(kind, **given)), tokens_of(one)
    first = found[: len(rows) // 3 * 3]  # the other rows of the first pass are in the next batch
    assert len(first) > 50
    assert all(first.count(row) <= rows.count(row) for row in first)
    assert first != found[len(first) : 2 * len(first)] != rows[: len(first)]


def test_a_stream_that_leaves_out_nothing_says_so(tmp_path: Path, chat_tokenizer: str, tiny_model: str) -> None:
    given = options(TextClassification, tmp_path, chat_tokenizer, tiny_model) | {"streaming": True, "batch_size": 53}
    data = make(TextClassification, **given)
    next(iter(data.train_dataloader()))
    counts = data.measured()["stream"]
    assert (counts["rows_read"], counts["rows_used"]) == (53, 53)
    assert not {"dropped_rows", "truncated_rows", "skipped_rows"} & counts.keys()


@pytest.mark.parametrize(("streaming", "epochs"), [(False, [0.0, 1.0, 2.0]), (True, [None] * 3)])
def test_the_passes_over_a_stream_are_unknown(
    streaming: bool, epochs: list[float | None], tmp_path: Path, chat_tokenizer: str
) -> None:
    given = options(Conversations, tmp_path, chat_tokenizer, "") | {"streaming": streaming, "batch_size": 5}
    data = make(Conversations, **given)
    assert [data.epochs(batches) for batches in (0, 11, 22)] == epochs


NO_STEPS, NO_EPOCHS = "give trainer.max_steps", r"leave out trainer\.max_epochs\.$"


@pytest.mark.parametrize(
    ("steps", "epochs", "batches", "message"),
    [
        (1, -1, 3, None),
        (5, -1, 15, None),
        (5, None, 15, None),
        (5, 0, 15, None),
        (-1, -1, None, None),  # until it is stopped
        (-1, None, None, NO_STEPS),
        (0, None, None, NO_STEPS),
        (-1, 1, None, NO_STEPS),
        (5, 1, None, NO_EPOCHS),
        (5, 2, None, NO_EPOCHS),
    ],
)
@pytest.mark.parametrize("quick", [False, True])
def test_a_stream_is_trained_on_for_steps(
    quick: bool,
    steps: int,
    epochs: int | None,
    batches: int | None,
    message: str | None,
    chat_tokenizer: str,
    tmp_path: Path,
) -> None:
    given = options(Text, tmp_path, chat_tokenizer, "") | {"streaming": True}
    data = Text(**given)
    limits = {"max_steps": steps, "max_epochs": epochs, "fast_dev_run": quick, "accumulate_grad_batches": 3}
    data.trainer = SimpleNamespace(lightning_module=None, state=SimpleNamespace(fn=TrainerFn.FITTING), **limits)
    if message is not None and not quick:
        for prepare in (data.prepare_data, lambda: data.setup("fit")):
            with pytest.raises(UserError, match=message):
                prepare()
        return
    data.setup("fit")
    assert data.num_train_batches == (batches or data.num_train_batches)
    assert batches is not None or steps > 0 or data.num_train_batches > 10**9


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stream_with_workers_reports_a_dead_one_once(workers: int, tmp_path: Path, chat_tokenizer: str) -> None:
    given = options(Conversations, tmp_path, chat_tokenizer, "") | {"streaming": True, "num_workers": workers}
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        assert next(iter(make(Conversations, **given).train_dataloader()))
        assert getattr(signal.getsignal(signal.SIGCHLD), "raises_once", False) == (workers > 0)
    finally:
        signal.signal(signal.SIGCHLD, before)


def same(one: list[dict[str, torch.Tensor]], other: list[dict[str, torch.Tensor]]) -> bool:
    return len(one) == len(other) and all(
        a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("device", ["cuda", "cpu", None])
@pytest.mark.parametrize("streaming", [True, False])
def test_batches_are_pinned_for_a_gpu_and_only_for_a_gpu(
    streaming: bool, device: str | None, tmp_path: Path, chat_tokenizer: str, tiny_model: str
) -> None:
    """Copies of pinned batches overlap with the computation; without a GPU to copy to, torch warns about pinning."""
    data = make(Text, **options(Text, tmp_path, chat_tokenizer, tiny_model), streaming=streaming)
    if device is not None:
        strategy = SimpleNamespace(root_device=torch.device(device))
        data.trainer = SimpleNamespace(strategy=strategy, global_rank=0, world_size=1)
    loader = data.train_dataloader()
    assert getattr(loader, "_loader", loader).pin_memory == (device == "cuda")


class _Hashes(torch.nn.Module):
    """A model that hashes characters, as CANINE: transformers finds no embedding in it."""

    def get_input_embeddings(self) -> torch.nn.Module:
        raise NotImplementedError


def test_any_token_may_reach_a_model_without_a_table_of_embeddings(tmp_path: Path, chat_tokenizer: str) -> None:
    small = torch.nn.Module()
    small.get_input_embeddings = lambda: torch.nn.Embedding(3, 2)
    for backbone, checked in ((_Hashes(), False), (small, True), (None, False)):
        data = make(Text, **options(Text, tmp_path, chat_tokenizer, ""), streaming=True)
        strategy, task = SimpleNamespace(root_device=torch.device("cpu")), SimpleNamespace(backbone=backbone)
        data.trainer = SimpleNamespace(strategy=strategy, global_rank=0, world_size=1, lightning_module=task)
        loader = data.train_dataloader()
        if checked:
            with pytest.raises(UserError, match="but the model has only 3 embeddings"):
                next(iter(loader))
        else:
            assert next(iter(loader))["input_ids"].max() > 2


@pytest.mark.parametrize("shuffle_buffer", [0, 7, 20])
@pytest.mark.parametrize("packing", [False, True])
def test_a_stream_resumes_at_any_batch(
    packing: bool, shuffle_buffer: int, tmp_path: Path, chat_tokenizer: str, tiny_model: str
) -> None:
    given = options(Conversations, tmp_path, chat_tokenizer, tiny_model) | {"batch_size": 3, "packing": packing}
    data = make(Conversations, **given, streaming=True, shuffle_buffer=shuffle_buffer)
    whole, states, counts = [], [], []
    loader = data.train_dataloader()
    for batch in itertools.islice(loader, 30):
        whole.append(batch)
        states.append(loader.state_dict())
        counts.append(loader.measured())
    for done in range(0, 30, 4):
        torch.save(states[done], tmp_path / "state.pt")
        again = data.train_dataloader()
        again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        assert again.measured() == counts[done]
        assert same(list(itertools.islice(again, 29 - done)), whole[done + 1 :])
        assert done == 29 or again.measured() == counts[-1]


def test_a_stream_with_workers_resumes_in_a_later_pass(tmp_path: Path, chat_tokenizer: str, tiny_model: str) -> None:
    """New workers do not know how many blocks a pass has."""
    given = options(Conversations, tmp_path, chat_tokenizer, tiny_model) | {"batch_size": 3, "streaming": True}
    plain = make(Conversations, **given, shuffle_buffer=7).train_dataloader()
    data = make(Conversations, **given, shuffle_buffer=7, num_workers=2)
    whole, states = list(itertools.islice(plain, 60)), []
    loader = data.train_dataloader()
    batches = iter(loader)
    while loader.measured()["passes"] < 2:
        next(batches)
        states.append(loader.state_dict())
    assert [state["per_pass"] for state in states if state["pass"]] == [plain.blocks.per_pass] * (
        sum(state["pass"] > 0 for state in states)
    )
    again = data.train_dataloader()
    again.load_state_dict(states[-1])
    assert same(list(itertools.islice(again, 10)), whole[len(states) : len(states) + 10])


def test_two_processes_share_the_batches_of_one(tmp_path: Path, chat_tokenizer: str, tiny_model: str) -> None:
    given = options(Conversations, tmp_path, chat_tokenizer, tiny_model) | {"streaming": True}
    data = make(Conversations, **given)
    one = itertools.islice(StreamLoader(Blocks(data, 20), 6, 9, seed=0), 9)
    ranks = [itertools.islice(StreamLoader(Blocks(data, 20), 3, 9, 0, rank, 2), 9) for rank in (0, 1)]
    for whole, *parts in zip(one, *ranks, strict=True):
        assert sorted(tokens_of([whole])) == sorted(tokens_of(parts))


@pytest.mark.parametrize("kind", [Conversations, TextClassification])
@pytest.mark.parametrize("missing", [0, 1])
def test_a_token_without_an_embedding_is_told_before_it_reaches_the_model(
    missing: int, kind: type, tmp_path: Path, chat_tokenizer: str, tiny_model: str
) -> None:
    data = make(kind, **options(kind, tmp_path, chat_tokenizer, tiny_model), streaming=True)
    highest = data.highest_token()  # of the first rows, which are all here
    most = highest + 1 - missing
    loader = StreamLoader(Blocks(data, 60), 50, 1, seed=0, most=most)
    if missing:
        said = rf"^data.tokenizer: the data has token ids up to {highest}, but the model has only {most} embeddings;"
        with pytest.raises(UserError, match=said):
            next(iter(loader))
    else:
        assert len(next(iter(loader))["input_ids"]) == 50
    assert len(StreamLoader(Blocks(data, 60), 50, 1, seed=0)) == 1


def test_files_of_every_kind_are_streamed_in_order(tmp_path: Path, chat_tokenizer: str) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    lines = [json.dumps(row) for row in ROWS]
    with gzip.open(folder / "part-0.jsonl.gz", "wt") as file:
        file.write("\n".join(lines[:20]))
    (folder / "part-1.jsonl").write_text("\n".join(lines[20:]))
    parquet.write_table(pa.Table.from_pylist(ROWS), tmp_path / "all.parquet")
    given = {"tokenizer": chat_tokenizer, "val_file": write(tmp_path / "val.jsonl", ROWS[:5]), "max_length": 60}
    expected = table_rows(make(Conversations, train_file=write(tmp_path / "all.jsonl", ROWS), **given))
    for train_file in (folder, folder / "part-*", tmp_path / "all.parquet"):
        data = make(Conversations, train_file=str(train_file), **given, streaming=True, shuffle_buffer=0, batch_size=5)
        assert tokens_of(itertools.islice(data.train_dataloader(), 10)) == expected[:50]


def test_a_set_in_the_form_of_the_hub_is_streamed(tmp_path: Path, chat_tokenizer: str) -> None:
    write(tmp_path / "train.jsonl", ROWS)
    write(tmp_path / "validation.jsonl", ROWS[:6])
    given = {"tokenizer": chat_tokenizer, "dataset": str(tmp_path), "max_length": 60}
    expected = table_rows(make(Conversations, **given))
    data = make(Conversations, **given, streaming=True, shuffle_buffer=0, batch_size=5)
    assert tokens_of(itertools.islice(data.train_dataloader(), 10)) == expected[:50]
    assert data.describe()["rows"] == {"val": 6}


def test_the_first_rows_are_held_out_without_validation_rows(tmp_path: Path, chat_tokenizer: str) -> None:
    given = {"tokenizer": chat_tokenizer, "train_file": write(tmp_path / "a.jsonl", ROWS), "max_length": 60}
    expected = table_rows(make(Conversations, **given, val_file=given["train_file"]))
    data = make(Conversations, **given, streaming=True, shuffle_buffer=0, batch_size=5, val_samples=8, train_samples=30)
    held_out = data.rows["val"]
    assert tokens_of(held_out[[number]] for number in range(8)) == expected[:8]
    assert tokens_of(itertools.islice(data.train_dataloader(), 6)) == expected[8:38]
    assert tokens_of(itertools.islice(data.train_dataloader(), 7))[30:] == expected[8:13]  # the next pass
    assert "the first 8 rows" in data.describe()["val_cut_from_train"]


def test_bad_long_and_empty_rows_are_counted_as_they_pass(
    tmp_path: Path, chat_tokenizer: str, capsys: pytest.CaptureFixture
) -> None:
    rows = [*ROWS[:20], {"prompt": "", "response": "x"}, {"prompt": "one?", "response": ""}, *ROWS[20:]]
    given = {"tokenizer": chat_tokenizer, "train_file": write(tmp_path / "a.jsonl", rows), "max_length": 40}
    given |= {"val_file": write(tmp_path / "val.jsonl", ROWS[:5]), "batch_size": 4}
    facts = make(Conversations, **given, on_bad_row="skip")
    stream = make(Conversations, **given, on_bad_row="skip", streaming=True, shuffle_buffer=10)
    table = facts.table("train")[1]
    for batch in stream.train_dataloader():
        assert len(batch["input_ids"]) == 4
        found = stream.measured()["stream"]
        if found["rows_read"] == len(rows):
            break
    assert found["skipped_rows"] == table["skipped_rows"] == 1
    assert found["empty_responses_dropped"] == table["empty_responses_dropped"] == 1
    assert found["truncated_rows"] == facts.truncated["train"] > 0
    assert found.get("dropped_rows", 0) == facts.dropped["train"]
    described = stream.describe()
    told = described["first_rows"]
    assert told["rows"] == 10
    assert told["truncated_rows"] > 0
    tell(described)
    assert f", {told['truncated_rows']} truncated; all are counted in the record" in capsys.readouterr().err
    for name in ("truncated_rows", "skipped_rows", "dropped_rows"):
        told[name] = 0
    tell(described)
    assert "counted in the record" not in capsys.readouterr().err
    bad = write(tmp_path / "b.jsonl", [*ROWS, rows[20]])
    for workers in (0, 1):  # rows of a stream may be skipped, so that the advice is given
        stopping = make(
            Conversations, **given | {"train_file": bad}, streaming=True, shuffle_buffer=10, num_workers=workers
        )
        with pytest.raises(
            UserError,
            match=r"^[^\n]*b\.jsonl line 54: the question in column 'prompt' is empty; "
            r"mend the row, or give --data\.on_bad_row skip\.$",
        ):
            list(itertools.islice(stopping.train_dataloader(), 30))


def test_a_stream_without_usable_rows_ends_in_a_sentence(tmp_path: Path, chat_tokenizer: str) -> None:
    given = {"tokenizer": chat_tokenizer, "max_length": 60, "streaming": True, "on_bad_row": "skip"}
    file = write(tmp_path / "a.jsonl", ROWS[:9])
    with pytest.raises(UserError, match="no row is left for training; the first 2000 are for validation"):
        make(Conversations, train_file=file, **given)
    empty = write(tmp_path / "b.jsonl", [{"prompt": "", "response": ""}] * 9)
    with pytest.raises(UserError, match="none of the first 9 training rows can be used"):
        make(Conversations, train_file=empty, val_file=file, **given)


def test_the_classes_of_a_stream_must_be_known(tmp_path: Path, tiny_model: str) -> None:
    file = write(tmp_path / "a.jsonl", LABELS)
    given = {"tokenizer": tiny_model, "train_file": file, "text_column": "a", "streaming": True, "val_samples": 9}
    with pytest.raises(UserError, match=r"rows have 2 different ones: give all as --data.label_names '\[bad, good\]'"):
        make(TextClassification, **given)


def test_label_sets_are_streamed_with_their_names(tmp_path: Path, tiny_model: str) -> None:
    rows = [
        {"text": "good", "labels": [name for bit, name in enumerate("abc") if number >> bit & 1]} for number in range(8)
    ]
    file = write(tmp_path / "a.jsonl", rows)
    given = {"tokenizer": tiny_model, "train_file": file, "val_file": file, "streaming": True, "batch_size": 8}
    with pytest.raises(UserError, match=r"rows have 3 different ones: give all as --data.label_names '\[a, b, c\]'"):
        make(TextMultiLabel, **given)
    data = make(TextMultiLabel, **given, label_names=["c", "a", "b"])
    found = sorted(next(iter(data.train_dataloader()))["labels"].tolist())
    assert found == sorted([number >> 2 & 1, number & 1, number >> 1 & 1] for number in range(8))


def test_a_list_of_json_is_not_streamed(tmp_path: Path, chat_tokenizer: str) -> None:
    (tmp_path / "a.json").write_text(json.dumps(ROWS))
    with pytest.raises(UserError, match=r"a\.json: a .json file with a list must be read whole"):
        make(Conversations, tokenizer=chat_tokenizer, train_file=str(tmp_path / "a.json"), streaming=True)


@pytest.fixture(scope="module")
def fit_stream(tmp_path_factory: pytest.TempPathFactory, tiny_model: str) -> list[str]:
    file = write_sentences(tmp_path_factory.mktemp("stream") / "train.tsv", 200)
    return [
        *("--model", "SequenceClassification", "--model.model_name", tiny_model, "--model.dtype", "fp32"),
        *("--data", "SST2", "--data.train_file", file, "--data.val_samples", "40", "--data.batch_size", "8"),
        *("--data.streaming", "true", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"),
    ]


def test_the_time_to_read_and_tokenise_a_stream_belongs_to_its_steps(
    fit_stream: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each block takes a tenth of a second; with blocks of eight rows and batches of eight, so does each step."""
    read, block = [], Blocks.block

    def slowly(self: Blocks, following: int) -> Any:
        read.append(following)
        time.sleep(0.1)
        return block(self, following)

    monkeypatch.setattr(Blocks, "block", slowly)
    limits = ["--data.shuffle_buffer", "8", "--trainer.max_steps", "8", "--memory.track_steps", "[]"]
    assert main(["fit", *fit_stream, *limits, "--run_dir", str(tmp_path / "run")]) == 0
    record = read_record(tmp_path / "run")
    assert len(read) == 8
    assert record["train_seconds"] > 8 * 0.1
    assert record["step_seconds_p50"] > 0.1
    assert record["train_samples_per_second"] < 8 / 0.1
    assert record["sampled_steps"] == 1  # the seventh
    assert record["step_split_seconds_p50"]["data_wait"] > 0.1


def test_verbs_on_a_stream(fit_stream: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run_dir = str(tmp_path / "run")
    assert main(["data", *fit_stream, "--examples", "1"]) == 0
    told = capsys.readouterr()
    assert "a stream of rows, shuffled in blocks of 10,000; the first 160:" in told.err
    assert "the first 40 rows of the stream are held out" in told.err
    assert told.out.count("--- train row") == 1
    weights = ["--model.class_weights", "[1,2]", "--trainer.max_steps", "25", "--trainer.val_check_interval", "10"]
    assert main(["fit", *fit_stream, *weights, "--run_dir", run_dir]) == 0
    record = read_record(Path(run_dir))
    assert record["stream"] == {"passes": 1, "rows_read": 320, "rows_used": 320, "rows_trained": 200}
    assert record["epochs"] is None
    assert [row["step"] for row in record["validations"]] == [10, 20, 25]
    assert record["data_summary"]["tables"]["train"]["streamed"]
    assert record["data_summary"]["rows"] == {"val": 40}
    assert main(["validate", "--run_dir", run_dir]) == 0
    texts = write_sentences(tmp_path / "new.tsv", 7)
    assert main(["predict", "--run_dir", run_dir, "--data.predict_file", texts]) == 0
    assert len((tmp_path / "run" / "predictions.jsonl").read_text().splitlines()) == 7
    assert main(["fit", *fit_stream, *weights[:2], "--trainer.max_steps", "30", "--trainer.val_check_interval", "10",
                 "--run_dir", run_dir, "--resume"]) == 0  # fmt: skip
    assert read_record(Path(run_dir))["stream"]["rows_trained"] == 240
    capsys.readouterr()
    assert main(["find_lr", *fit_stream, "--steps", "12"]) == 0
    assert main(["estimate", *fit_stream]) == 0
    assert "the longest batch of the first block of the stream" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "data.streaming trains by steps, because rows are not counted; give trainer.max_steps."),
        (["--trainer.max_epochs", "2", "--trainer.max_steps", "1"], "leave out trainer.max_epochs."),
        (["--model.class_weights", "balanced", "--trainer.max_steps", "9"], "give the weights as a list."),
        (["--data.shuffle_buffer", "-1"], "data.shuffle_buffer must not be negative, got -1."),
    ],
)
def test_options_that_a_stream_cannot_follow_are_refused(
    more: list[str], message: str, fit_stream: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["fit", *fit_stream, *more, "--run_dir", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err
