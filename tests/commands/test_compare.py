"""`litpeft compare`: its options, and every output format parsed again."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import pytest
import yaml

from litpeft.__main__ import main
from litpeft.analysis.comparison import Comparison, compare
from litpeft.analysis.comparison.formats import latex, markdown
from litpeft.analysis.comparison.number_format import MINUS, format_estimate, format_interval, format_p, format_value
from litpeft.analysis.comparison.results import Estimate
from litpeft.analysis.comparison.terminal import as_text
from tests.analysis.comparison.build import write_grid, write_run

ACCURACIES = {
    "none": [0.900, 0.912, 0.921, 0.905],
    "lora": [0.880, 0.901, 0.905, 0.893],
    "dora": [0.902, 0.909, 0.925, 0.903],
}
ODD = r"50% of_a|b & #1 {x} ~^\ [red]<i>*$"  # characters that some format must escape


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    return write_grid(tmp_path / "runs", ACCURACIES)


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """A sweep whose label, title and published rows must be escaped in every format."""
    folder = write_grid(tmp_path / "odd", {"none": [0.9, 0.91], "lora": [0.8, 0.82]})
    trials = [{"name": "none", "label": "none", "axes": {}}, {"name": "lora", "label": ODD, "axes": {"what": ODD}}]
    published = {
        "source": ODD,
        "note": "One seed.",
        "rows": [{"label": ODD, "val_accuracy": 0.925, "model_bytes": None}],
    }
    content = {"experiment": ODD, "question": f"Why\n{ODD}?", "axes": ["what"], "baseline": None, "trials": trials}
    content |= {"metric": None, "target": None, "published": published, "seeds": [0, 1], "varies": ["model.adapter"]}
    (folder / "sweep.yaml").write_text(yaml.safe_dump(content))
    return folder


def run_compare(*arguments: object, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["compare", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def cells(line: str, between: str) -> list[str]:
    """Split a table row at unescaped separators, and unescape the cells."""
    return [
        re.sub(r"\\([^a-zA-Z0-9\s])", r"\1", cell).strip() for cell in re.split(rf"(?<!\\){re.escape(between)}", line)
    ]


def test_the_terminal_shows_tables_warnings_and_differences(grid: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(grid / "qlora", "qlora-nf4", 0, 0.9, status="oom", error="out of memory")
    text = run_compare(grid, "--figures", "val_accuracy,model_bytes", capsys=capsys)
    lines = [" ".join(line.replace(MINUS, "-").split()) for line in text.splitlines()]
    assert "lora 4 89.5 ± 1.8 43.61" in lines
    assert "lora -1.48 -2.13 to -0.82 0.011 worse — —" in lines
    assert "Left out, oom: qlora-nf4, seed 0: out of memory." in text
    assert "qlora-nf4 0 (1 unfinished) — —" in lines
    assert "Margins: validation accuracy 1 point." in " ".join(lines)
    assert text.index("Left out") < text.index("89.5")
    assert max(map(len, text.splitlines())) <= 80


def test_a_wide_table_is_split_and_a_narrow_one_is_not(grid: Path) -> None:
    comparison = compare([grid])
    assert sum("seeds  " in line for line in as_text(comparison, width=80).splitlines()) == 4
    assert sum("seeds  " in line for line in as_text(comparison, width=240).splitlines()) == 1


def test_csv_is_read_back_raw(grid: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = list(csv.DictReader(io.StringIO(run_compare(grid, "--format", "csv", capsys=capsys))))
    comparison = compare([grid])
    assert [row["label"] for row in rows] == ["full", "dora", "lora"]
    for row, group in zip(rows, comparison.groups, strict=True):
        estimate, difference = group.estimates["val_accuracy"], group.differences.get("val_accuracy")
        assert [float(row[f"val_accuracy_{key}"]) for key in ("mean", "low", "high", "count")] == [
            *(estimate.mean, estimate.low, estimate.high, 4)
        ]
        assert row["axis_adapter"] == group.label
        assert row["val_accuracy_verdict"] == (difference.verdict if difference else "")
        assert row["val_accuracy_difference_p_holm"] == (str(difference.p_holm) if difference else "")
        assert row["model_bytes_mean"] == "45732616.0"


def test_json_is_read_back_with_null_for_unknown_values(grid: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(grid / "x", "qlora-nf4", 0, None)
    content = json.loads(run_compare(grid, "--format", "json", "--figures", "val_accuracy", capsys=capsys))
    assert (content["baseline"], content["axes"], content["published"]) == ("full", ["adapter"], None)
    assert content["figures"][0]["better"] == "higher"
    lora = content["groups"][2]
    assert lora["differences"]["val_accuracy"]["verdict"] == "worse"
    assert lora["runs"][2]["figures"] == {"val_accuracy": 0.905}
    assert lora["runs"][2]["folder"] == str(grid / "lora" / "seed2")
    assert content["groups"][3]["estimates"] == {"val_accuracy": None}


def test_json_has_the_choices_of_tuning_as_the_file_of_the_sweep(grid: Path, capsys: pytest.CaptureFixture) -> None:
    tried = [{"values": {"model.optimizer.lr": rate}, "mean": 0.8, "runs": 1} for rate in (0.001, 0.003)]
    tuned = {"metric": "val_accuracy", "seeds": [1000], "tried": tried, "chosen": tried[0]["values"]}
    tuned["edges"] = {"model.optimizer.lr": "lowest"}
    trials = [{"name": name, "label": name, "axes": {"adapter": name}} for name in ACCURACIES]
    trials[1]["tuned"] = tuned
    content = {"experiment": "e", "axes": ["adapter"], "seeds": [0, 1, 2, 3], "trials": trials}
    (grid / "sweep.yaml").write_text(yaml.safe_dump(content))
    assert json.loads(run_compare(grid, "--format", "json", capsys=capsys))["tuned"] == {"lora": tuned}


def test_markdown_is_read_back(odd: Path, grid: Path) -> None:
    rows = [
        cells(line, "|")[1:-1]
        for line in markdown(compare([grid])).replace(MINUS, "-").splitlines()
        if line.startswith("|")
    ]
    assert rows[0][:3] == ["group", "seeds", "validation accuracy, %"]
    assert rows[4][:3] == ["lora", "4", "89.5 ± 1.8"]
    assert ["validation accuracy, points", "lora", "-1.48", "-2.13 to -0.82", "0.011", "worse", "—", "—"] in rows
    text = markdown(compare([odd]))
    assert f"## {ODD}" in re.sub(r"\\([^a-zA-Z0-9\s])", r"\1", text)
    rows = [cells(line, "|")[1:-1] for line in text.splitlines() if line.startswith("|")]
    assert rows[3][:3] == [ODD, "2", "81 ± 13"]
    assert rows[4][:3] == [f"{ODD} (published)", "—", "92.50"]
    assert len({len(row) for row in rows[:5]}) == 1
    assert f"Published rows were measured by others: {ODD}. One seed." in re.sub(r"\\([^a-zA-Z0-9\s])", r"\1", text)


def test_latex_is_escaped(odd: Path) -> None:
    text = latex(compare([odd]))
    body = [line for line in text.splitlines() if not line.startswith("%")]
    assert [line for line in body if line.startswith((r"\begin", r"\end"))].count(r"\end{tabular}") == 2
    rows = [line for line in body if line.endswith(r"\\")]
    escaped = r"50\% of\_a|b \& \#1 \{x\} \textasciitilde{}\textasciicircum{}\textbackslash{} [red]$<$i$>$*\$"
    assert rows[2].startswith(f"{escaped} & 2 & 81 $\\pm$ 13 & ")
    assert rows[3].startswith(f"{escaped} (published) & --- & 92.50 & ")
    for row in rows:
        plain = re.sub(
            r"\\textbackslash\{\}|\\[&%$#_{}]|\$<\$|\$>\$|\$\\(pm|geq|leq)\$|\$-\$", "", row.removesuffix(r"\\")
        )
        assert not re.search(r"[%#$_^~]", re.sub(r"\\textascii\w+\{\}", "", plain)), row
    (columns,) = {len(cells(row.removesuffix(r"\\"), "&")) for row in rows[:4]}
    assert rf"\begin{{tabular}}{{l{'r' * (columns - 1)}}}" in body
    assert not {*"±≥≤—", MINUS} & set("".join(body))


def test_labels_are_not_read_as_terminal_markup(odd: Path) -> None:
    text = as_text(compare([odd]), width=300)
    assert f"{ODD} (published)" in text
    assert "Why\n" in text


def test_confounded_options_are_above_all_tables(grid: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(grid / "x", "qlora-nf4", 0, options={"trainer.max_epochs": 3})
    for form_name, mark in {"markdown": "> **Warning.**", "latex": "% Warning:", "terminal": "Warnings"}.items():
        text = " ".join(
            run_compare(grid, "--format", form_name, capsys=capsys).replace("│", "").replace("\\", "").split()
        )
        message = "The groups also differ in trainer.max_epochs, which is not an axis: 1 (full, dora, lora), 3 (qlora"
        assert message in text
        assert text.index(mark) <= text.index(message) < text.index("seeds")


def test_one_seed_is_tested_over_rows_with_a_note(tmp_path: Path) -> None:
    for adapter, right in {"none": [1] * 30 + [0] * 30, "lora": [1] * 60}.items():
        results = {"correct": right, "loss": [0.5] * 60}
        write_run(tmp_path / adapter, adapter, 0, sum(right) / 60, examples=results)
    text = as_text(compare([tmp_path]))
    (line,) = [line.split() for line in text.splitlines() if line.startswith("  lora") and "+50" in line]
    assert " ".join(line) == "lora +50 +38 to +62 rows, 1 seed < 0.001 better — —"
    assert "compares these trained models on similar rows, not the training methods" in " ".join(text.split())


@pytest.mark.parametrize("ending", ["md", "csv", "json", "tex", "txt"])
def test_the_suffix_of_a_file_sets_its_format(
    grid: Path, tmp_path: Path, ending: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new" / f"table.{ending}"
    assert run_compare(grid, "-o", path, capsys=capsys) == f"{path}\n"
    begins = {"md": "## made", "csv": "label,source", "json": "{\n", "tex": "% made_up", "txt": "made_up\n"}
    assert path.read_text().startswith(begins[ending])


def test_an_error_is_one_sentence(grid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    for arguments, message in {
        ("nowhere",): "nowhere: no such folder",
        (str(grid), "--target", "val_accuracy"): "is not METRIC=NUMBER",
        (): "litpeft compare: the following arguments are required: PATH; see litpeft compare --help.",
        (str(grid), "--by", "rnk"): "--by rnk: no run's record",
        (str(grid), "-o", str(tmp_path / "file" / "x.md")): f"-o {tmp_path / 'file' / 'x.md'}: ",
    }.items():
        assert main(["compare", *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_options_reach_the_comparison(grid: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = json.loads(
        run_compare(
            *(grid, "--baseline", "dora", "--by", "adapter, model.adapter.rank", "--format", "json"),
            *("--target", "val_accuracy=0.9,val_loss=0.3", "--target", "val_f1=0.5", "--baseline", "lora, rank=8"),
            capsys=capsys,
        )
    )
    assert content["baseline"] == "lora, rank=8"
    assert content["axes"] == ["adapter", "model.adapter.rank"]
    names = [figure["name"] for figure in content["figures"] if figure["name"].startswith("seconds_to")]
    assert names == ["seconds_to_val_accuracy_0.9", "seconds_to_val_loss_0.3", "seconds_to_val_f1_0.5"]


@pytest.mark.parametrize(
    ("name", "estimate", "shown"),
    [
        ("val_accuracy", Estimate(0.85283, 0.84367, 0.86199, 3), "85.28 ± 0.92"),
        ("val_accuracy", Estimate(0.85283, None, None, 1), "85.28"),
        ("peak_rss_bytes", Estimate(1.5 * 2**30, 1.4 * 2**30, 1.6 * 2**30, 3), "1,540 ± 100"),
        ("train_tokens_per_second", Estimate(12345.6, 11111.6, 13579.6, 3), "12,300 ± 1,200"),
        ("trainable_params", Estimate(74498.0, 74498.0, 74498.0, 3), "74,498"),
        ("val_loss", Estimate(0.0, None, None, 1), "0"),
        ("val_loss", None, "—"),
        ("peak_tensor_bytes", Estimate(344929264.0, 344929229.4, 344929298.6, 3), "329.0"),  # 35 bytes
        ("val_loss", Estimate(0.0, -0.03, 0.03, 3), "0.000 ± 0.030"),
        ("val_loss", Estimate(0.0004, -0.0296, 0.0304, 3), "0.000 ± 0.030"),
    ],
)
def test_digits_match_the_interval(name: str, estimate: Estimate | None, shown: str) -> None:
    assert format_estimate(name, estimate) == shown


def test_small_values_are_not_rounded_to_zero() -> None:
    assert format_value("val_loss", -0.0004, 0.002, signed=True) == f"{MINUS}0.0004"
    assert format_interval("val_accuracy", -0.01, 0.03) == f"{MINUS}1.0 to +3.0"
    assert [format_p(p) for p in (None, 0, 1e-9, 0.0312)] == ["—", "exact", "< 0.001", "0.031"]


def test_a_comparison_of_one_group_has_no_differences(tmp_path: Path) -> None:
    write_grid(tmp_path, {"lora": [0.8, 0.9]})
    comparison: Comparison = compare([tmp_path])
    assert comparison.baseline is None
    assert "p (Holm)" not in as_text(comparison)
    assert "needed" not in markdown(comparison)
