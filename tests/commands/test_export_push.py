"""`litpeft export --push` and `--format gguf`: a hub on this machine takes the files, and a converter is called."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import gguf
import pytest
import yaml

from litpeft.__main__ import main
from litpeft.hub import upload
from litpeft.runs.record import read_record
from tests.conftest import litpeft

CONVERTER = """
import sys, json, pathlib, gguf
from safetensors.numpy import load_file
folder, file, kind = pathlib.Path(sys.argv[1]), sys.argv[3], sys.argv[5]
if json.loads((folder / "config.json").read_text())["architectures"] != ["LlamaForCausalLM"]:
    sys.exit("only Llama can be converted")
assert (folder / "tokenizer.json").is_file() and sys.argv[2::2] == ["--outfile", "--outtype"] and kind == "f32"
writer = gguf.GGUFWriter(file, "llama")
for name, tensor in load_file(folder / "model.safetensors").items():
    writer.add_tensor(name, tensor)
writer.write_header_to_file(); writer.write_kv_data_to_file(); writer.write_tensors_to_file(); writer.close()
"""


class Hub(BaseHTTPRequestHandler):
    """The part of the hub's interface that making a repository and uploading small files need."""

    def do_HEAD(self) -> None:
        self._answer({})

    def do_GET(self) -> None:
        self._answer({"id": "me/mine", "sha": "0", "siblings": []})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        if self.headers["Authorization"] != "Bearer secret":
            self._answer({"error": "no"}, 401)
        elif self.path == "/api/repos/create":
            self.server.made = json.loads(body)
            self._answer({"url": f"http://{self.headers['Host']}/me/mine"})
        elif "/preupload/" in self.path:
            files = [{"path": each["path"], "uploadMode": "regular"} for each in json.loads(body)["files"]]
            self._answer({"files": [each | {"shouldIgnore": False, "oid": None} for each in files]})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            address = f"http://{self.headers['Host']}/me/mine/commit/1"
            self._answer({"commitUrl": address, "commitOid": "1", "hookOutput": "", "pullRequestUrl": None})
        else:  # checks the metadata of the card
            self.server.checked.append(json.loads(body) if body else {})
            self._answer({"errors": [], "warnings": []})

    def _answer(self, content: dict[str, Any], status: int = 200) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data if self.command != "HEAD" else b"")

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def hub_here() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.files, server.made, server.checked = {}, None, []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, fit_arguments: list[str]) -> Path:
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    assert main([*fit_arguments, "--model.adapter", "LoRA", "--trainer.max_steps", "3", "--run_dir", str(run_dir)]) == 0
    return run_dir


def test_an_export_is_uploaded_with_its_card(finished: Path, tmp_path: Path, hub_here: ThreadingHTTPServer) -> None:
    command = ["export", str(finished), "out", "--format", "adapter", "--push", "me/mine", "--license", "apache-2.0"]
    here = {"HF_ENDPOINT": f"http://127.0.0.1:{hub_here.server_port}", "HF_TOKEN": "secret", "HF_HUB_OFFLINE": "0"}
    done = litpeft(*command, cwd=tmp_path, HF_HUB_DISABLE_XET="1", **here)
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith(f"uploaded: {here['HF_ENDPOINT']}/me/mine")
    assert (hub_here.made["name"], hub_here.made["organization"]) == ("mine", "me")
    assert hub_here.made.get("private") or hub_here.made["visibility"] == "private"  # by version of the hub's client
    local = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert local.pop("litpeft_export.json")
    assert hub_here.files == local
    card = yaml.safe_load(local["README.md"].decode().split("---")[1])
    assert (card["license"], card["library_name"], card["pipeline_tag"]) == (
        "apache-2.0",
        "peft",
        "text-classification",
    )
    found = {
        (each["dataset"]["split"], metric["type"]): metric["value"]
        for each in card["model-index"][0]["results"]
        for metric in each["metrics"]
    }
    record = read_record(finished)
    assert found["validation", "accuracy"] == record["val_accuracy"]
    assert found["validation", "loss"] == record["val_loss"]
    assert not any(name.endswith(("seconds", "bytes", "step")) for _, name in found)


@pytest.mark.parametrize(
    ("token", "answers", "reason"),
    [(None, True, "there is no token; run `hf auth login` or set HF_TOKEN"), ("x", False, "the hub cannot be reached")],
)
def test_without_a_token_or_a_hub_the_folder_is_written_and_the_command_is_said(
    token: str | None,
    answers: bool,
    reason: str,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: token)
    monkeypatch.setattr(upload, "hub_answers", lambda: answers)
    out = tmp_path / "out"
    assert main(["export", str(finished), str(out), "--format", "adapter", "--push", "me/mine"]) == 2
    said = f"--push me/mine: {reason}. the export is whole; upload it with `hf upload me/mine {out} . --exclude"
    assert said in capsys.readouterr().err
    assert (out / "adapter_model.safetensors").is_file()


def test_wrong_repositories_and_lone_options_are_refused_before_work(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    command = ["export", str(finished), str(tmp_path / "out"), "--format", "adapter"]
    for more, reason in ((["--push", "mine"], "give USER/NAME"), (["--public"], "--public applies to --push")):
        assert main([*command, *more]) == 2
        assert reason in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_converter_of_llama_cpp_writes_gguf(
    tmp_path: Path, tiny_llama: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    rows = tmp_path / "rows.json"
    rows.write_text(json.dumps([{"instruction": "a fine story", "input": "", "output": "good"}] * 8))
    data = ["--data", "Alpaca", "--data.train_file", str(rows), "--data.val_file", str(rows)]
    run = [
        "--model.dtype",
        "fp32",
        "--model.adapter",
        "LoRA",
        "--trainer.max_steps",
        "1",
        "--run_dir",
        str(tmp_path / "r"),
    ]
    quiet = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    assert main(["fit", "--model", "CausalLM", "--model.model_name", tiny_llama, *data, *run, *quiet]) == 0
    export = ["export", str(tmp_path / "r"), str(tmp_path / "mine"), "--format", "gguf"]
    monkeypatch.setenv("LLAMA_CPP", "")
    assert main(export) == 2
    assert "--format gguf needs convert_hf_to_gguf.py of llama.cpp on the PATH" in capsys.readouterr().err
    (tmp_path / "convert_hf_to_gguf.py").write_text(CONVERTER)
    monkeypatch.setenv("LLAMA_CPP", str(tmp_path))
    assert main(export) == 0
    tensors = gguf.GGUFReader(tmp_path / "mine" / "mine.gguf").tensors
    assert f"mine.gguf, {len(tensors)} tensors in fp32" in capsys.readouterr().out
    assert "model.embed_tokens.weight" in {tensor.name for tensor in tensors}
    files = {path.name for path in (tmp_path / "mine").iterdir()}
    assert files == {"mine.gguf", "README.md", "litpeft_export.json"}


def test_a_converter_that_fails_is_named_and_nothing_is_written(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "convert_hf_to_gguf.py").write_text(CONVERTER)
    monkeypatch.setenv("LLAMA_CPP", str(tmp_path))
    assert main(["export", str(finished), str(tmp_path / "out"), "--format", "gguf"]) == 2
    assert "convert_hf_to_gguf.py failed: only Llama can be converted" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
