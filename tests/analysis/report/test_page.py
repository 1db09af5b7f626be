"""The page as text: names are escaped, nothing is loaded from a network, and unknown values are n/a."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from litpeft.analysis.comparison import compare
from litpeft.analysis.report import page as page_module
from litpeft.analysis.report.markdown import write_markdown
from litpeft.analysis.report.page import page
from litpeft.errors import UserError
from litpeft.runs.record import FIELDS
from tests.analysis.report.made_runs import write_run, write_runs

pytest.importorskip("plotly", reason="needs plotly (the extra `report`)")
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7 * 7 }}"


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    folder = write_runs(tmp_path, {"lora": HOSTILE})
    comparison = compare([folder], baseline="none")
    comparison.title = comparison.question = HOSTILE
    comparison.confounded = {HOSTILE: {HOSTILE: HOSTILE}}
    comparison.warnings = [HOSTILE]
    comparison.published = {"source": HOSTILE, "note": HOSTILE, "rows": [{"label": HOSTILE, "val_accuracy": 0.5}]}
    text = page(comparison, HOSTILE)
    assert text.count("<script") == text.count("</script>") == 3  # figures, plotly.js, page.js
    assert "<img" not in text
    assert "&lt;/script&gt;&lt;script&gt;alert(1)" in text
    assert "{{ 7 * 7 }}" in text


def test_the_figures_can_be_read_back(tmp_path: Path) -> None:
    text = page(compare([write_runs(tmp_path, {"lora": HOSTILE})]), "litpeft report")
    content = json.loads(re.search(r'id="figures">(.*?)</script>', text, re.S)[1])
    names = {trace["name"] for trace in content["figures"]["quality-memory"]["data"]}
    assert any(name.startswith("&lt;/script&gt;") for name in names)


def test_nothing_is_loaded_from_elsewhere(tmp_path: Path) -> None:
    text = page(compare([write_runs(tmp_path)]), "litpeft report")
    assert not re.search(r"""(src|href)=["']?(https?:)?//|@import|url\(""", text)
    assert "default-src 'none'" in text
    assert len(text) < 2_500_000


def test_the_table_has_verdicts_and_marks_published_rows(tmp_path: Path) -> None:
    comparison = compare([write_runs(tmp_path)], baseline="none")
    comparison.published = {"source": "a paper", "rows": [{"label": "LoRA of a paper", "val_accuracy": 0.875}]}
    text = page(comparison, "litpeft report")
    row = re.search(r"<tr[^>]*>\s*<th scope=\"row\">[^<]*LoRA of a paper.*?</tr>", text, re.S)[0]
    assert "published</span>" in row
    assert "87.5" in row
    assert "n/a" in row  # the paper has no memory
    assert '<span aria-hidden="true">▼</span> worse' in text
    assert f"val_accuracy: {FIELDS['val_accuracy']}" in text
    assert "1 unfinished" in text


def test_old_records_without_newer_fields_are_shown(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(
            tmp_path / str(seed), "lora", "lora", seed, memory_phases=None, validations=None, machine=None, git=None
        )
        file = tmp_path / str(seed) / "record.json"
        record = {
            k: v for k, v in json.loads(file.read_text()).items() if k not in ("validations", "step_split_seconds_p50")
        }
        file.write_text(json.dumps(record))
    text = page(compare([tmp_path]), "litpeft report")
    assert "There is only one group" in text
    assert 'id="memory"' not in text


def test_differences_from_the_baseline_run_are_listed(tmp_path: Path) -> None:
    text = page(compare([write_runs(tmp_path)], baseline="none"), "litpeft report")
    assert "<code>litpeft.lora</code></td><td><code>litpeft.none</code>" in text
    assert "seed_everything</code></th>" not in text  # differs between seeds, not between groups


def test_a_missing_extra_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    comparison = compare([write_runs(tmp_path)])
    monkeypatch.setitem(__import__("sys").modules, "plotly.offline", None)
    with pytest.raises(UserError, match=r"^litpeft report needs plotly: pip install 'litpeft\[report\]'$"):
        page_module.page(comparison, "x")
    monkeypatch.setitem(__import__("sys").modules, "kaleido", None)
    with pytest.raises(UserError, match=r"^litpeft report needs kaleido .*: pip install 'litpeft\[report\]'$"):
        write_markdown(comparison, tmp_path / "report.md")
