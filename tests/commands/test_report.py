"""The command `litpeft report`."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from litpeft.__main__ import main
from tests.analysis.report.made_runs import write_run, write_runs
from tests.conftest import litpeft

pytest.importorskip("plotly", reason="needs plotly (the extra `report`)")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_runs(tmp_path_factory.mktemp("report") / "runs")


def test_a_page_is_written_to_the_output_path(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "new" / "report.html"
    arguments = ["report", str(runs), "--baseline", "lora", "--figures", "val_loss,train_seconds", "-o", str(path)]
    assert main([*arguments, "--target", "val_accuracy=0.85"]) == 0
    assert capsys.readouterr().out.strip() == str(path)
    text = path.read_text()
    assert "baseline: <strong>lora</strong>" in text
    heads = re.findall(r'<th scope="col" title="([\w.]+):', text)
    assert heads == ["val_loss", "train_seconds", "seconds_to_val_accuracy_0.85"]
    assert "litpeft report " in text
    assert "--baseline lora" in text


def test_torch_and_plotlys_classes_are_not_imported(runs: Path, tmp_path: Path) -> None:
    code = "import sys; from litpeft.__main__ import main; main(sys.argv[1:]); "
    code += "print([name for name in ('torch', 'lightning', 'tensorflow', 'plotly.graph_objs') if name in sys.modules])"
    arguments = ["report", str(runs), "-o", str(tmp_path / "report.html")]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere"], "nowhere"),
        (
            ["RUNS", "--format", "md", "-o", "report.html"],
            "--format md does not fit -o report.html; leave one of them out.",
        ),
        (["RUNS", "-o", "FOLDER"], "FOLDER is a folder; give a file name."),
        (["RUNS", "--baseline", "dora"], "--baseline dora: no such group"),
    ],
)
def test_an_error_is_one_sentence(
    runs: Path, tmp_path: Path, arguments: list[str], sentence: str, capsys: pytest.CaptureFixture
) -> None:
    paths = {"RUNS": str(runs), "FOLDER": str(tmp_path)}
    assert main(["report", *(paths.get(word, word) for word in arguments)]) == 2
    error = capsys.readouterr().err
    assert sentence.replace("FOLDER", str(tmp_path)) in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_a_markdown_report_has_a_folder_of_images(tmp_path: Path) -> None:
    pytest.importorskip("kaleido", reason="needs kaleido (the extra `report`)")
    from tests.analysis.report.screenshots import chromium

    if chromium() is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    for adapter in ("none", "lora"):
        for seed in (0, 1):
            label = "<b>a|b</b> &lt;" if adapter == "lora" else adapter
            write_run(tmp_path / adapter / str(seed), label, adapter, seed)
    done = litpeft("report", str(tmp_path), "--baseline", "none", "-o", str(tmp_path / "out" / "report.md"))
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "out" / "report.md").read_text()
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert len(pictures) >= 12
    for picture in pictures:
        assert (tmp_path / "out" / picture).read_bytes().startswith(b"\x89PNG")
    assert r"| \<b\>a\|b\</b\> &amp;lt; |" in text
    assert "<b>" not in text


@pytest.mark.slow
def test_markdown_without_a_browser_is_one_sentence(runs: Path, tmp_path: Path) -> None:
    pytest.importorskip("kaleido", reason="needs kaleido (the extra `report`)")
    missing = str(tmp_path / "no-browser")
    done = litpeft("report", str(runs), "-o", str(tmp_path / "report.md"), BROWSER_PATH=missing)
    assert done.returncode == 2
    assert "--format md: kaleido could not draw with" in done.stderr
    assert "Traceback" not in done.stderr
