"""`litpeft chat` and `litpeft generate`: answers equal those of plain transformers on the exported model."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import re
import select
import shutil
import sys
import termios
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from litpeft.__main__ import main
from litpeft.cli.answering_models import AnsweringModel, load_models
from litpeft.cli.speaker import Speaker
from litpeft.cli.text_stream import TextStream
from litpeft.commands.chat_screen import _side_by_side
from litpeft.errors import UserError
from tests.data.image_files import write_images, write_vision_model
from tests.forking import SERVER, like_a_new_process, litpeft

END = "<|im_end|>"  # no token of the byte tokenizer: it ends an answer as text
SHORT = ["--max_new_tokens", "12", "--accelerator", "cpu"]
FIT = ["--model.dtype", "fp32", "--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, byte_llama: str) -> Path:
    """Return a run of a small causal model on conversations, trained enough to differ from its base."""
    folder = tmp_path_factory.mktemp("chat")
    turns = [[("user", f"say {i}"), ("assistant", f"{i} {i}")] for i in range(12)]
    rows = [{"messages": [{"role": role, "content": text} for role, text in each]} for each in turns]
    (folder / "chats.jsonl").write_text("\n".join(map(json.dumps, rows)))
    arguments = [
        *("fit", "--model", "CausalLM", "--model.model_name", byte_llama, *FIT),
        *("--model.adapter", "LoRA", "--model.adapter.targets", "all-linear"),
        *("--model.optimizer", "torch.optim.Adam", "--model.optimizer.lr", "0.01"),
        *("--data", "Conversations", "--data.train_file", str(folder / "chats.jsonl"), "--data.val_samples", "4"),
        *("--data.template", "chatml", "--data.batch_size", "4", "--data.max_length", "256"),
    ]
    assert main([*arguments, "--run_dir", str(folder / "run")]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def exported(run: Path) -> tuple[Any, Any]:
    """Return the merged model and its tokenizer, as a user of plain transformers loads them."""
    out = run.parent / "merged"
    assert main(["export", str(run), str(out), "--format", "merged"]) == 0
    return AutoModelForCausalLM.from_pretrained(out).eval(), AutoTokenizer.from_pretrained(out)


@pytest.fixture(scope="module")
def model(run: Path) -> AnsweringModel:
    [model] = load_models(run, None, "cpu")
    return model


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory, fit_arguments: list[str]) -> Path:
    folder = tmp_path_factory.mktemp("classifier") / "run"
    assert main([*fit_arguments, "--run_dir", str(folder)]) == 0
    return folder


def plain_answer(model: Any, tokenizer: Any, turns: list[dict[str, str]]) -> str:
    """Return the greedy answer of plain transformers to a conversation."""
    ids = torch.tensor(tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"])[None]
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
    return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).partition(END)[0].strip()


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def test_a_piped_chat_equals_plain_transformers_with_its_history_and_beside_its_base(
    run: Path, exported: tuple[Any, Any], byte_llama: str, tmp_path: Path
) -> None:
    merged, tokenizer = exported
    base = AutoModelForCausalLM.from_pretrained(byte_llama).eval()
    lines = "say 1\nsay 2\n\n/save chat.jsonl\n/reset\nsay 2\n/quit\nnever read\n"
    command = ["chat", str(run), "--compare", "base", "--system", "Be short.", *SHORT]
    done = litpeft(*command, cwd=tmp_path, stdin=lines)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    expected, saved = [], []
    for name, plain in ((str(run), merged), ("base", base)):
        turns = [{"role": "system", "content": "Be short."}]
        for question in ("say 1", "say 2"):
            turns.append(user(question))
            turns.append(assistant(plain_answer(plain, tokenizer, turns)))
        again = plain_answer(plain, tokenizer, [turns[0], user("say 2")])
        expected.append((f"{name}: {turns[2]['content']}\n", f"{name}: {turns[4]['content']}\n", f"{name}: {again}\n"))
        saved.append({"messages": turns, "model": name})
    [(one, two, three), (first, second, third)] = expected
    assert done.stdout == one + first + two + second + "saved to chat.jsonl\n" + three + third
    assert one.partition(": ")[2] != first.partition(": ")[2]
    assert [json.loads(line) for line in (tmp_path / "chat.jsonl").read_text().splitlines()] == saved


def test_the_prompt_of_a_history_is_that_of_the_chat_template(model: AnsweringModel, exported: tuple[Any, Any]) -> None:
    turns = [user("one"), assistant("two"), user("three")]
    speaker = Speaker(model.run.model, model.run.datamodule, {"max_new_tokens": 8})
    rendered = exported[1].apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    assert speaker.prompt(turns) == rendered
    assert speaker.tokens(turns) == exported[1](rendered, add_special_tokens=False)["input_ids"]


def test_two_runs_with_one_base_hold_it_once(
    run: Path, exported: tuple[Any, Any], byte_llama: str, tmp_path: Path
) -> None:
    shutil.copytree(run, tmp_path / "other")
    one, other = load_models(run, str(tmp_path / "other"), "cpu")
    assert one.run.model is other.run.model
    other.run.state = {name: torch.zeros_like(tensor) for name, tensor in other.run.state.items()}  # as the base
    merged, tokenizer = exported
    base = AutoModelForCausalLM.from_pretrained(byte_llama).eval()
    for model, plain in ((one, merged), (other, base), (one, merged)):
        speaker = Speaker(model.run.model, model.run.datamodule, {"max_new_tokens": 12})
        with model.ready():
            answer = speaker.stream([user("say 1")], lambda _: None)
        assert answer == plain_answer(plain, tokenizer, [user("say 1")])


def test_streamed_pieces_are_the_whole_answer_and_batches_are_padded_on_the_left(model: AnsweringModel) -> None:
    speaker = Speaker(model.run.model, model.run.datamodule, {"max_new_tokens": 24})
    prompts = [[user(text)] for text in ("say 1", "a much longer question, which pads the others", "?")]
    streamed = []
    for turns in prompts:
        pieces: list[str] = []
        assert speaker.stream(turns, pieces.append) == "".join(pieces)
        streamed.append("".join(pieces))
    assert all(streamed)
    assert list(speaker.answers([(turns, None) for turns in prompts], batch_size=3)) == streamed


def test_an_old_part_of_a_long_conversation_is_left_out(model: AnsweringModel) -> None:
    speaker = Speaker(model.run.model, model.run.datamodule, {"max_new_tokens": 8})
    system, long = {"role": "system", "content": "s"}, "a" * 900
    turns = [system, user(long), assistant(long), user("short"), assistant("yes"), user(long)]
    assert speaker.fitting(turns) == [system, *turns[3:]]
    with pytest.raises(UserError, match="tokens, and the model takes 2040 before an answer of 8; give a shorter text"):
        speaker.fitting([user("a" * 3000)])


def test_text_that_may_end_an_answer_and_parts_of_characters_are_held_back() -> None:
    pieces: list[str] = []
    tokenizer = SimpleNamespace(decode=lambda ids, **_: bytes(ids).decode(errors="replace"))
    stream = TextStream(tokenizer, [END], pieces.append)
    stream.put(torch.tensor([[1, 2, 3]]))  # the prompt
    for byte in f"  é <|i x{END} y".encode():
        stream.put(torch.tensor([byte]))
    stream.end()
    assert stream.text == "".join(pieces) == "é <|i x"
    assert "�" not in "".join(pieces)
    assert pieces[0] == "é"


@pytest.fixture
def _in_memory(model: AnsweringModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let commands take the loaded model of the run instead of loading it again."""
    monkeypatch.setattr("litpeft.cli.answering_models.load_models", lambda *_: [model])


@pytest.mark.usefixtures("_in_memory")
def test_sampling_depends_on_the_seed_only(run: Path, capsys: pytest.CaptureFixture) -> None:
    command = ["generate", str(run), "--prompt", "say 1", "--temperature", "1.5", "--top_k", "50", "--top_p", "0.99"]
    found = []
    for seed in ("1", "1", "2"):
        assert main([*command, *SHORT, "--seed", seed]) == 0
        found.append(capsys.readouterr().out)
    assert found[0] == found[1] != found[2]


@pytest.mark.usefixtures("_in_memory")
def test_generate_reads_prompts_and_files(
    run: Path, exported: tuple[Any, Any], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    answers = [plain_answer(*exported, [user(text)]) for text in ("say 1", "say 22")]
    listed = f"> say 1\n{answers[0]}\n\n> say 22\n{answers[1]}\n"
    (tmp_path / "p.txt").write_text("say 1\n\nsay 22\n")
    history = [user("say 1"), assistant("1"), user("say 22"), assistant("left out")]
    rows = [{"prompt": "say 1"}, {"prompt": "say 22"}]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "m.jsonl").write_text(json.dumps({"messages": history}))
    for given, expected in (
        (["--prompt", "say 1", "--prompt", "say 22"], listed),
        (["--file", str(tmp_path / "p.txt")], listed),
        (["--file", str(tmp_path / "p.jsonl")], listed),
        (["--file", str(tmp_path / "m.jsonl")], plain_answer(*exported, history[:3]) + "\n"),
    ):
        assert main(["generate", str(run), *given, *SHORT]) == 0
        assert capsys.readouterr().out == expected


def test_a_classifier_answers_with_its_label(
    classifier: Path, sentences: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: Any
) -> None:
    texts = ["the film was superb", "a dull story"]
    (tmp_path / "texts.tsv").write_text("sentence\n" + "\n".join(texts) + "\n")
    output = str(tmp_path / "out.jsonl")
    command = ["predict", "--run_dir", str(classifier), "--data.predict_file", str(tmp_path / "texts.tsv")]
    assert main([*command, "--predictions.file", output, "--trainer.accelerator", "cpu"]) == 0
    found = [json.loads(line) for line in Path(output).read_text().splitlines()]
    expected = []
    for row in found:
        likely = sorted(row["probabilities"].items(), key=lambda pair: -pair[1])
        expected.append(f"{row['label']} ({', '.join(f'{name} {p:.1%}' for name, p in likely)})")
    capsys.readouterr()
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(texts)))
    assert main(["chat", str(classifier), "--accelerator", "cpu"]) == 0
    assert capsys.readouterr().out.splitlines() == expected
    listed = "\n\n".join(f"> {text}\n{label}" for text, label in zip(texts, expected, strict=True)) + "\n"
    for given in (["--prompt", texts[0], "--prompt", texts[1]], ["--file", str(tmp_path / "texts.tsv")]):
        assert main(["generate", str(classifier), *given, "--accelerator", "cpu"]) == 0
        assert capsys.readouterr().out == listed


def test_an_image_model_answers_with_its_label(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    name, images = write_vision_model(tmp_path / "vit"), write_images(tmp_path / "images")
    command = ["fit", "--model", "ImageClassification", "--model.model_name", name, *FIT, "--data", "ImageFolder"]
    command += ["--data.train_file", images, "--data.val_samples", "4", "--data.batch_size", "4"]
    assert main([*command, "--run_dir", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    image = f"{images}/red/00.png"
    assert main(["generate", str(tmp_path / "run"), "--prompt", image, "--accelerator", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"> {image}\n")
    assert shown.split("\n")[1].split()[0] in ("red", "blue")
    assert main(["generate", str(tmp_path / "run"), "--prompt", "none.png", "--accelerator", "cpu"]) == 2
    assert "none.png" in capsys.readouterr().err


def test_answers_of_two_models_stand_side_by_side_on_a_terminal() -> None:
    class Fixed:
        asks_for = "a question"

        def __init__(self, name: str, pieces: list[str]) -> None:
            self.name, self.pieces = name, pieces

        def answer(self, text: str, write: Any) -> None:
            for piece in self.pieces:
                write(piece)
            if not self.pieces:
                raise UserError("it is too long.")

    out = io.StringIO()
    console = Console(file=out, width=70, force_terminal=True, color_system=None)
    assert _side_by_side([Fixed("run", ["[b]", "one"]), Fixed("base", ["two"])], "?", console)
    final = out.getvalue().rpartition("run")[2]
    assert re.search(r"\[b\]one +\S+ two ", final)
    assert not _side_by_side([Fixed("run", ["one"]), Fixed("base", [])], "?", console)
    assert "litpeft: error: it is too long." in out.getvalue()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["chat", "none"], "none does not exist; give the folder of a run of litpeft fit."),
        (["generate", "EMPTY", "--prompt", "a"], "holds no run: it has no record.json; give the folder of a run"),
        (["chat", "RUN", "--compare", "none"], "none does not exist; give the folder"),
        (["chat", "RUN", "--top_p", "0.5"], "--top_p applies to sampling; give --temperature too"),
        (["chat", "RUN", "--temperature", "-1"], "--temperature must not be negative, got -1.0."),
        (["chat", "RUN", "--max_new_tokens", "0"], "--max_new_tokens must be at least 1, got 0."),
        (["generate", "RUN"], "give --prompt, once or several times, or --file."),
        (["generate", "RUN", "--file", "none.txt"], "--file none.txt: there is no such file."),
        (["generate", "RUN", "--prompt", "a" * 3000], "give a shorter text or a smaller --max_new_tokens."),
        (["chat", "LABELS", "--system", "x"], "--system is for language models, and"),
        (["chat", "LABELS", "--compare", "base"], "--compare base: the base has no trained head"),
        (["chat", "RUN", "--compare", "LABELS"], "one run generates text and the other predicts labels"),
    ],
)
def test_mistakes_are_one_sentence(
    run: Path, classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture, arguments: list[str], message: str
) -> None:
    places = {"RUN": str(run), "LABELS": str(classifier), "EMPTY": str(tmp_path)}
    assert main([places.get(word, word) for word in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_run_without_a_checkpoint_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "record.json").write_bytes((run / "record.json").read_bytes())
    assert main(["chat", str(tmp_path)]) == 2
    assert "has no checkpoint, so there is no trained model (status: ok)" in capsys.readouterr().err


def test_on_a_terminal_ctrl_c_stops_an_answer_and_ctrl_d_quits(run: Path, tmp_path: Path) -> None:
    """Type into a terminal: a question whose answer would take long, Ctrl-C, a command, and Ctrl-D."""
    screen, child = pty.openpty()
    command = ("chat", str(run), "--max_new_tokens", "1900", "--accelerator", "cpu")
    process = SERVER.Process(target=_on_terminal, args=(os.ttyname(child), command, tmp_path))
    process.start()
    shown = _Screen(screen)
    try:
        shown.until("you: ")
        os.write(screen, b"say 1\n")
        shown.until("run: ")
        time.sleep(0.3)
        os.write(screen, b"\x03")
        shown.until("[stopped]", "you: ")
        os.write(screen, b"/save here.jsonl\n")
        shown.until("saved to here.jsonl", "you: ")
        os.write(screen, b"\x04")
        process.join(20)
        assert process.exitcode == 0
    finally:
        process.kill()
    saved = json.loads((tmp_path / "here.jsonl").read_text())
    assert [turn["role"] for turn in saved["messages"]] == ["user", "assistant"]


class _Screen:
    def __init__(self, screen: int) -> None:
        self._screen, self._text = screen, ""

    def until(self, *texts: str) -> None:
        """Wait until the terminal has shown these texts, one after the other."""
        for text in texts:
            end = time.monotonic() + 60
            while text not in self._text:
                assert time.monotonic() < end, f"{text!r} is not in {self._text!r}"
                if select.select([self._screen], [], [], 0.2)[0]:
                    self._text += os.read(self._screen, 4096).decode(errors="replace")
            self._text = self._text.partition(text)[2]


def _on_terminal(name: str, arguments: tuple[str, ...], folder: Path) -> None:
    os.setsid()
    terminal = os.open(name, os.O_RDWR)
    fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)  # Ctrl-C then sends SIGINT
    for number in range(3):
        os.dup2(terminal, number)
    sys.stdin = open(0)  # noqa: SIM115
    os.chdir(folder)
    like_a_new_process()
    raise SystemExit(main(list(arguments)))
