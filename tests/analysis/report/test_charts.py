"""Charts have the numbers of the runs, and plotly accepts them."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t

from litpeft.analysis.comparison import Comparison, Figure, compare
from litpeft.analysis.report.chart import Chart, literal, scaled
from litpeft.analysis.report.costs import group_axis
from litpeft.analysis.report.learning import curve_charts, read_lines
from litpeft.analysis.report.page import parts
from litpeft.analysis.report.style import DARK, INK, LIGHT, PARTS_DARK, PARTS_LIGHT, look, themes
from litpeft.analysis.report.tradeoffs import pareto_front, tradeoff_charts
from litpeft.runs.strategy_names import stored_name
from tests.analysis.comparison.build import write_run
from tests.analysis.comparison.test_benchmarks import evaluation, result
from tests.analysis.report import made_runs
from tests.analysis.report.made_runs import GROUPS, write_runs

MORE, LESS = (Figure("x", "x", better, "speed") for better in ("higher", "lower"))
QUALITY = Figure("val_accuracy", "validation accuracy, %", "higher", "quality")


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    folder = write_runs(tmp_path_factory.mktemp("runs"))
    return compare([folder], baseline="none", targets=[("val_accuracy", 0.85)])


@pytest.fixture(scope="module")
def charts(comparison: Comparison) -> dict[str, Chart]:
    return {chart.name: chart for part in parts(comparison) for chart in part.charts}


def test_plotly_accepts_every_chart(charts: dict[str, Chart]) -> None:
    graph_objects = pytest.importorskip("plotly.graph_objects", reason="needs plotly (the extra `report`)")
    assert len(charts) >= 12
    for chart in charts.values():
        graph_objects.Figure(chart.data, chart.layout)  # raises for unknown properties
        assert chart.caption.endswith(".")
        assert all(len(row) == len(chart.columns) for row in chart.rows), chart.name


@given(st.text("\"'<>&%{}#;12ltampquo ") | st.sampled_from(["<b>&amp;</b>", "%{x}", "&#123;", "&lt;", "&quot;"]))
def test_plotly_shows_a_label_as_it_is(text: str) -> None:
    """plotly.js knows few entities by name (src/constants/xmlns_namespaces.js, lib/svg_text_utils.js), and no &quot;."""
    given = literal(text)
    assert not re.search(r"<|%\{", given)
    known = {"amp": "&", "lt": "<", "gt": ">", "nbsp": "\u00a0"}
    shown = re.sub(
        r"&(?:#(\d+)|([a-z]+));",
        lambda found: chr(int(found[1])) if found[1] else known.get(found[2], found[0]),
        given,
    )
    assert shown == text


@given(st.floats(1e-9, 1e12))
def test_drawn_values_have_six_digits(value: float) -> None:
    assert scaled("val_loss", value) == pytest.approx(value, rel=5.1e-6)
    assert scaled("val_accuracy", value) == pytest.approx(100 * value, rel=5.1e-6)
    assert len(f"{scaled('val_loss', value):.12g}".strip("0").replace(".", "").partition("e")[0].strip("0")) <= 6


def test_quality_against_memory_has_means_and_intervals(comparison: Comparison, charts: dict[str, Chart]) -> None:
    traces = {trace["name"]: trace for trace in charts["quality-memory"].data}
    for group in comparison.groups:
        estimate, trace = group.estimates["val_accuracy"], traces[group.label]
        assert trace["y"] == [pytest.approx(100 * estimate.mean, rel=1e-5)]
        assert trace["error_y"]["array"] == [pytest.approx(100 * (estimate.high - estimate.mean), rel=1e-5)]
        assert trace["x"] == [sum(GROUPS[stored_name(group.label)][2])]  # MiB of tensors
        assert comparison.groups[trace["meta"]["group"]] is group


def test_the_front_is_drawn_if_it_has_several_groups(tmp_path: Path) -> None:
    for name, peak, accuracy in (("none", 300, 0.9), ("lora", 200, 0.8), ("dora", 250, 0.7)):
        for seed in (0, 1):
            write_run(tmp_path / name / f"{seed}", name, seed, accuracy + seed / 100, peak_tensor_bytes=peak * 2**20)

    def memory_chart() -> Chart:
        return next(chart for chart in tradeoff_charts(compare([tmp_path])) if chart.name == "quality-memory")

    front = memory_chart().data[0]
    assert (front["name"], front["x"], front["y"]) == ("Pareto front", [200, 300], [80.5, 90.5])
    assert {row[0]: row[-1] for row in memory_chart().rows} == {"full": "yes", "lora": "yes", "dora": "no"}
    assert [trace["marker"]["line"]["width"] > 0 for trace in memory_chart().data[1:]] == [True, False, True]
    for seed in (0, 1):  # the best in both
        write_run(tmp_path / "none" / f"{seed}", "none", seed, 0.9 + seed / 100, peak_tensor_bytes=2**20)
    assert [trace["name"] for trace in memory_chart().data] == ["full", "dora", "lora"]


def test_quality_without_a_direction_has_no_tradeoff_chart(tmp_path: Path) -> None:
    write_runs(tmp_path)
    found = compare([tmp_path], figures=["val_loss", "peak_tensor_bytes"])
    found.figures.insert(0, Figure("val_charm", "val charm", None, "quality"))
    for group in found.groups:
        group.estimates["val_charm"] = group.estimates["val_loss"]
    assert [chart.columns[2] for chart in tradeoff_charts(found)] == ["validation loss"]


def test_the_front_has_all_points_that_no_point_dominates() -> None:
    points = {0: (10.0, 0.9), 1: (5.0, 0.8), 2: (5.0, 0.7), 3: (12.0, 0.9), 4: (1.0, 0.1)}
    assert pareto_front(points, LESS, QUALITY) == [4, 1, 0]
    assert pareto_front(points, MORE, QUALITY) == [3]
    assert pareto_front({0: (1.0, 1.0), 1: (1.0, 1.0)}, LESS, QUALITY) == [
        0,
        1,
    ]  # equal points do not dominate each other


def test_curves_have_a_line_per_seed_a_mean_and_a_band(comparison: Comparison, charts: dict[str, Chart]) -> None:
    for number, group in enumerate(comparison.groups):
        group_traces = [trace for trace in charts["curve-train_loss"].data if trace["meta"] == {"group": number}]
        band, *seeds, mean = group_traces
        assert band["fill"] == "toself"
        assert len(seeds) == len(group.runs) + len(group.failed)
        finished = [trace["y"] for trace in seeds if "(oom)" not in trace["hovertemplate"]]
        at_first = [values[0] for values in finished]
        assert mean["y"][0] == pytest.approx(sum(at_first) / len(at_first), rel=1e-4)
        assert "mean of 3 seeds" in mean["hovertemplate"]
        assert all(each["line"]["width"] < mean["line"]["width"] and each["opacity"] < 0.5 for each in seeds)
    (unfinished,) = [t for t in charts["curve-train_loss"].data if "(oom)" in t.get("hovertemplate", "")]
    assert unfinished["name"] == "lora"
    assert charts["curve-train_tokens_per_second"].data[1]["x"][-1] == 200  # without the value logged at the end


def test_the_table_of_a_curve_has_eight_rows_of_each_group_from_its_first_to_its_last_step(
    comparison: Comparison, charts: dict[str, Chart]
) -> None:
    chart = charts["curve-train_loss"]
    for number, group in enumerate(comparison.groups):
        rows = [row for at, row in chart.table if at == number]
        steps = [int(row[1]) for row in rows]
        assert {row[0] for row in rows} == {group.label}
        assert len(steps) == 8
        assert (steps[0], steps[-1]) == (10, 200)
        assert steps == sorted(steps)
        assert all(" to " in row[3] for row in rows)


def test_lines_of_a_few_points_have_markers(charts: dict[str, Chart]) -> None:
    for name, chart in charts.items():
        for trace in chart.data if name.startswith("curve-") else ():
            if "hovertemplate" in trace:  # no band
                assert ("markers" in trace["mode"]) == (len(trace["x"]) <= 12), name


def test_a_band_has_no_impossible_accuracy(tmp_path: Path) -> None:
    for seed, accuracy in ((0, 0.90), (1, 0.99)):  # the interval of their mean ends above 1
        validations = [{"step": step, "val_loss": 0.5, "val_accuracy": accuracy} for step in (100, 200)]
        made_runs.write_run(tmp_path / f"{seed}", "lora", "lora", seed, validations=validations)
    (chart,) = [c for part in parts(compare([tmp_path])) for c in part.charts if c.name == "curve-val_accuracy"]
    band = next(trace for trace in chart.data if trace.get("fill") == "toself")
    assert max(band["y"]) == 100.0
    assert min(band["y"]) >= 0.0


def test_bars_show_memory_by_kind_on_one_scale(charts: dict[str, Chart]) -> None:
    train, load = charts["memory-train"], charts["memory-load"]
    labels = train.data[0]["y"]
    for trace, part in zip(train.data, range(5), strict=True):
        assert trace["x"] == [GROUPS[stored_name(label)][2][part] for label in labels]
        assert trace["marker"]["line"]["width"] > 0  # a line between neighbours
    assert train.layout["xaxis"]["range"] == load.layout["xaxis"]["range"]
    assert "memory-validate" not in charts  # tensors were not tracked in this phase
    assert load.caption.startswith("Live tensors after loading")
    assert train.caption.startswith("Live tensors at the peak of the phase “train”")
    assert [row[-1] for row in train.rows] == [f"{sum(GROUPS[stored_name(label)][2])}.0 MiB" for label in labels]


def test_time_to_target_names_groups_that_never_reached_it(tmp_path: Path) -> None:
    folder = write_runs(tmp_path)
    chosen = compare([folder], baseline="none", targets=[("val_accuracy", 0.885)])
    (chart,) = [c for part in parts(chosen) for c in part.charts if c.title.startswith("Time to")]
    assert "not reached: qlora-nf4" in chart.caption
    assert {trace["name"] for trace in chart.data} == {"full", "lora"}


def test_a_curve_of_one_point_says_why_and_a_band_of_equal_accuracies_has_the_width_of_a_row(tmp_path: Path) -> None:
    for seed in (0, 1):
        validations = [{"step": step, "val_loss": 0.5, "val_accuracy": 0.75} for step in (100, 200)]
        folder = tmp_path / f"{seed}"
        made_runs.write_run(folder, "lora", "lora", seed, validations=validations, data_summary={"rows": {"val": 8}})
        (folder / "curves.jsonl").write_text(
            '{"step": 0, "tokens": 0, "seconds": 0, "values": {}}\n'
            '{"step": 10, "tokens": 9, "seconds": 1, "values": {"train_loss": 0.5}}\n'
        )
    found = {chart.name: chart for part in parts(compare([tmp_path])) for chart in part.charts}
    assert "Each run has one point" in found["curve-train_loss"].caption
    assert "validated" not in found["curve-train_loss"].caption
    (band,) = [trace for trace in found["curve-val_accuracy"].data if trace.get("fill") == "toself"]
    half = t.ppf(0.975, 1) * ((1 / 8) ** 2 / 12 / 2) ** 0.5  # of values rounded to a row of eight
    assert max(band["y"]) == 100.0
    assert min(band["y"]) == pytest.approx(100 * max(0.75 - half, 0), rel=1e-4)


def test_curves_at_one_step_have_an_error_bar_and_scores_the_digits_of_their_unit(tmp_path: Path) -> None:
    scores = {0: 0.25, 1: 0.75}
    for seed, score in scores.items():
        done = result(score) | {"scores": {"acc": score, "loss": 1.5 + seed}}
        made_runs.write_run(tmp_path / f"{seed}", "lora", "lora", seed, benchmarks=[evaluation(100, mine=done)])
    lines = read_lines(compare([tmp_path]))
    found = curve_charts({tag: lines[tag] for tag in ("mine_acc", "mine_loss")})
    for tag, chart in found.items():
        (bar,) = [trace for trace in chart.data if "error_y" in trace]
        share = tag == "mine_acc"
        assert (bar["x"], bar["y"]) == ([100], [50.0 if share else 2.0])
        assert chart.caption.startswith("Measured during training.")
        hovers = [trace["hovertemplate"] for trace in chart.data if "hovertemplate" in trace]
        assert hovers
        assert all((":.2f}" in hover) == share and (":.4f}" in hover) != share for hover in hovers)


def test_a_single_validation_is_a_dot_instead_of_a_curve(tmp_path: Path) -> None:
    for seed in (0, 1):
        made_runs.write_run(
            tmp_path / f"{seed}",
            "lora",
            "lora",
            seed,
            validations=[{"step": 200, "val_loss": 0.5, "val_accuracy": 0.8}],
        )
    names = [chart.name for part in parts(compare([tmp_path])) for chart in part.charts]
    assert "curve-val_loss" not in names
    assert "figure-val_loss" in names


def test_each_group_has_a_unique_look_in_all_charts(charts: dict[str, Chart]) -> None:
    seen = [(look(i).colour, look(i).marker, look(i).dash) for i in range(48)]
    assert len(set(seen)) == 48
    assert set(LIGHT + PARTS_LIGHT) < themes().keys()
    for chart in charts.values():
        for trace in chart.data:
            if "group" in trace["meta"] and "symbol" in trace.get("marker", {}):
                assert trace["marker"]["color"] == look(trace["meta"]["group"]).colour
                assert trace["marker"]["symbol"] == look(trace["meta"]["group"]).marker


def luminance(colour: str) -> float:
    """https://www.w3.org/TR/WCAG22/#dfn-relative-luminance"""
    shares = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return sum(weight * share for weight, share in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(a: str, b: str) -> float:
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [0, 1])
def test_marks_and_text_have_contrast_with_the_page(theme: int) -> None:
    paper = INK["paper"][theme]
    marks = ((*LIGHT, *PARTS_LIGHT), (*DARK, *PARTS_DARK))[theme]
    assert {colour: contrast(colour, paper) for colour in marks if contrast(colour, paper) < 3} == {}
    assert contrast(INK["text"][theme], paper) > 7
    assert contrast(INK["muted"][theme], paper) > 4.5


def as_deuteranope(colour: str) -> list[float]:
    """Simulate deuteranopia: Machado, Oliveira & Fernandes 2009, table 1, severity 1."""
    rows = (0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)
    shares = [(int(colour[i : i + 2], 16) / 255) ** 2.2 for i in (1, 3, 5)]
    return [max(0.0, sum(w * s for w, s in zip(row, shares, strict=True))) ** (1 / 2.2) for row in rows]


@pytest.mark.parametrize("colours", [LIGHT, DARK])
def test_colour_blind_readers_can_distinguish_the_first_five_groups(colours: tuple[str, ...]) -> None:
    seen = [as_deuteranope(colour) for colour in colours[:5]]
    nearest = min(
        sum((p - q) ** 2 for p, q in zip(a, b, strict=True)) ** 0.5 for a, b in itertools.combinations(seen, 2)
    )
    assert nearest > 0.12


@pytest.mark.parametrize("text", ["<b>x</b>", "a & b", "%{y}", "<a href='https://example.com'>x</a>"])
def test_names_are_escaped_for_plotly(text: str) -> None:
    assert not {"<", ">", "%{"} & {sign for sign in ("<", ">", "%{") if sign in literal(text)}


@pytest.mark.parametrize(
    ("label", "shown"),
    [
        ("x" * 22, "x" * 22),
        ("a" * 11 + "b" + "c" * 11, "a" * 11 + "…" + "c" * 10),
        ("full", "full"),
        ("a&lt;b", "a&lt;b"),
    ],
)
def test_labels_of_more_than_22_characters_are_shortened_in_the_middle(label: str, shown: str) -> None:
    axis = group_axis([label])
    assert (axis["tickvals"], axis["ticktext"]) == ([label], [shown])
