"""Grouping of runs, warnings, and refusals of `compare`."""

from __future__ import annotations

import csv
import gc
import io
import json
import subprocess
import sys
from argparse import ArgumentParser
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest
import yaml

from litpeft.analysis.comparison import compare
from litpeft.analysis.comparison.formats import FORMATS
from litpeft.analysis.comparison.results import Tried, Tuned
from litpeft.analysis.comparison.selection import add_compare_options, compare_selected
from litpeft.errors import UserError
from tests.analysis.comparison.build import write_grid, write_run

THREE = {"none": [0.90, 0.91, 0.92], "lora": [0.85, 0.86, 0.87], "dora": [0.90, 0.92, 0.91]}
LR = "model.init_args.optimizer.init_args.lr"
RANK = "model.init_args.adapter.init_args.rank"


def labels(*paths: Path, **options: Any) -> list[str]:
    return [group.label for group in compare(paths, **options).groups]


def write_sweep(folder: Path, **changes: Any) -> Path:
    write_grid(folder, THREE)
    trials = [{"name": name, "label": name, "axes": {"strategy": name}} for name in ("lora", "dora", "none")]
    content = {"experiment": "real", "question": "Is it?", "axes": ["strategy"], "baseline": "none", "trials": trials}
    content |= {"metric": "val_loss", "target": {"val_accuracy": 0.8}, "published": None, "seeds": [0, 1, 2]}
    content |= {"varies": ["model.init_args.adapter.class_path"]}
    (folder / "sweep.yaml").write_text(yaml.safe_dump(content | changes))
    return folder


def test_runs_are_grouped_by_adapter_with_full_first(tmp_path: Path) -> None:
    comparison = compare([write_grid(tmp_path, THREE)])
    assert [group.label for group in comparison.groups] == ["full", "dora", "lora"]
    assert (comparison.axes, comparison.baseline, comparison.title) == (["adapter"], "full", "made_up")
    assert [text[:35] for text in comparison.warnings] == ["All methods have the learning rate "]
    assert comparison.confounded == {}
    assert [figure.name for figure in comparison.figures] == [
        *("val_accuracy", "val_loss", "peak_tensor_bytes", "peak_rss_bytes", "train_tokens_per_second"),
        *("step_seconds_p50", "train_seconds", "trainable_params", "adapter_bytes", "model_bytes"),
    ]
    lora = comparison.groups[2]
    assert lora.estimates["val_accuracy"].mean == pytest.approx(0.86)
    assert lora.differences["val_accuracy"].mean == pytest.approx(-0.05)
    assert lora.differences["val_accuracy"].verdict == "worse"
    assert lora.differences.keys().isdisjoint({"trainable_params", "adapter_bytes", "model_bytes"})
    assert comparison.groups[0].differences == {}


def test_paths_may_be_runs_or_records_and_one_run_counts_once(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a" / "seed0", checkpoint="checkpoints/last")
    write_run(run / "checkpoints" / "last", seed=9)  # not searched: it is inside a run folder
    (tmp_path / "link").symlink_to(run)
    comparison = compare([run, run / "record.json", tmp_path, run / ".." / "seed0", tmp_path / "link"])
    assert [run.seed for group in comparison.groups for run in group.runs] == [0]
    assert comparison.baseline is None


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("rank", "rank=8, rank=16"),
        ("model.adapter.rank", "rank=8, rank=16"),
        (RANK, "rank=8, rank=16"),
        ("lr", "lr=0.003, lr=0.01"),
    ],
)
def test_by_takes_config_keys_with_and_without_init_args(tmp_path: Path, name: str, shown: str) -> None:
    key, other = (LR, 0.01) if name == "lr" else (RANK, 16)
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", options={key: other})
    assert ", ".join(labels(tmp_path, by=[name])) == shown


def test_a_run_that_failed_while_loading_is_not_in_the_group_without_a_schedule(tmp_path: Path) -> None:
    write_run(tmp_path / "a", scheduler="WarmupLinear")
    write_run(tmp_path / "b", scheduler=None)
    write_run(tmp_path / "c", seed=1, scheduler=None, optimizer=None, status="oom", error="No memory.")
    found = compare([tmp_path], by=["scheduler"])
    assert [(group.label, len(group.failed)) for group in found.groups] == [("WarmupLinear", 0), ("none", 0)]
    assert f"Left out, oom: {tmp_path / 'c'}: No memory." in found.warnings


def test_numbers_are_sorted_and_several_axes_make_one_label(tmp_path: Path) -> None:
    for rank in (16, 2, 8):
        write_run(tmp_path / str(rank), options={RANK: rank})
    write_run(tmp_path / "full", "none")
    assert labels(tmp_path, by=["adapter", "model.adapter.rank"]) == [
        *("full, rank=—", "lora, rank=2", "lora, rank=8", "lora, rank=16"),
    ]


def test_classes_of_the_same_name_have_different_labels(tmp_path: Path) -> None:
    for place, name in enumerate(("torch.optim.Adafactor", "transformers.optimization.Adafactor", "torch.optim.SGD")):
        write_run(tmp_path / str(place), options={"model.init_args.optimizer.class_path": name}, optimizer=name)
    assert labels(tmp_path, by=["optimizer"]) == ["SGD", "torch.optim.Adafactor", "transformers.optimization.Adafactor"]


def test_options_that_do_not_affect_results_may_differ(tmp_path: Path) -> None:
    write_run(tmp_path / "a")
    harmless = {
        **{"data.init_args.seed": 1, "data.init_args.num_workers": 4, "data.init_args.val_file": "copy/val.tsv"},
        **{"trainer.logger": False, "trainer.enable_progress_bar": False, "trainer.accelerator": "auto"},
        **{"throughput.sample_every": 0, "memory.track_steps": [], "predictions.file": "x", "record.predictions": True},
        **{
            "checkpoint.every_n_steps": 7,
            "checkpoint.every_n_minutes": 5.0,
            "checkpoint.keep": "all",
            "model.init_args.a_newer_option": 3,
        },
        **{"data.init_args.test_file": "test.tsv"},  # only one run was tested
    }
    tables = {split: {"fingerprint": f"{split}-1"} for split in ("train", "val", "test")}
    write_run(tmp_path / "b", seed=1, options=harmless, data_summary={"rows": {}, "tables": tables})
    assert labels(tmp_path) == ["lora"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {LR: 0.01},
            r"runs of lora differ in more than the seed: model.optimizer.lr is 0.003 or 0.01; give --by adapter,",
        ),
        ({RANK: 4}, r"model.adapter.rank is 8 or 4; give --by adapter,model.adapter.rank"),
        ({"data.init_args.seed": 5}, "data.seed is none or 5"),
        ({"checkpoint.keep": "best"}, "checkpoint.keep is last or best"),
        ({"model.init_args.scheduler": {"class_path": "WarmupLinear"}}, "model.scheduler.class_path is none or Warmup"),
        ({"model.init_args.adapter.init_args.rank_pattern": {"query": 2}}, "rank_pattern"),
        ({"trainer.max_epochs": 2, LR: 1.0, RANK: 1, "checkpoint.keep": "best"}, "and 1 more"),
    ],
)
def test_a_group_whose_runs_differ_in_more_than_the_seed_is_refused(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    write_run(tmp_path / "alone", "none")
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", seed=1, options=options)
    with pytest.raises(UserError, match=message):
        compare([tmp_path])


def test_a_common_data_seed_is_no_difference_but_one_of_a_single_group_is(tmp_path: Path) -> None:
    for seed in range(3):  # for seed 0, a data seed of 0 looks like the default
        write_run(tmp_path / f"a{seed}", seed=seed, options={"data.init_args.seed": 0})
        write_run(tmp_path / f"b{seed}", "dora", seed, options={"data.init_args.seed": 0})
        write_run(tmp_path / f"c{seed}", "none", seed, options={"data.init_args.seed": seed})
    assert not compare([*tmp_path.glob("[ab]*")]).confounded
    assert list(compare([tmp_path]).confounded) == ["data.seed"]


def test_other_differences_between_groups_are_confounded(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "none", options={LR: 2e-5})
    write_run(tmp_path / "b", "lora", options={RANK: 4})
    write_run(tmp_path / "c", "dora", options={"model.init_args.dtype": "fp32"})
    assert compare([tmp_path]).confounded == {
        "model.adapter.rank": {
            "full": "(absent)",
            "dora": "8",
            "lora": "4",
        },  # options that both adapters have should be equal
        "model.dtype": {"full": "bf16", "lora": "bf16", "dora": "fp32"},
    }
    assert compare([tmp_path], by=["adapter", "lr", "model.dtype", "model.adapter.rank"]).confounded == {}


def test_two_runs_of_one_seed_are_refused_unless_one_of_them_failed(tmp_path: Path) -> None:
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", status="failed", error="no room on the disk.")
    assert "Left out, failed: lora, seed 0: no room on the disk." in compare([tmp_path]).warnings
    write_run(tmp_path / "b")
    with pytest.raises(UserError, match=r"a and .*b are both lora with seed 0"):
        compare([tmp_path])


def test_methods_with_rates_of_their_own_are_compared_without_a_warning(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "none", options={"model.init_args.optimizer.init_args.lr": 1e-4})
    write_run(tmp_path / "b", "lora")
    comparison = compare([tmp_path])
    assert not any("learning rate" in sentence for sentence in comparison.warnings)
    assert comparison.remarks == ["The groups have learning rates of their own: 0.0001 (full); 0.003 (lora)."]
    assert comparison.confounded == {}
    assert compare([tmp_path], by=["data.batch_size", "adapter"]).confounded == {}
    write_run(tmp_path / "a", "lora", options={"model.init_args.adapter.init_args.rank": 16})
    assert not any("learning rate" in sentence for sentence in compare([tmp_path], by=["rank"]).warnings)


@pytest.mark.parametrize("split", ["train", "val"])
def test_different_tables_are_refused_unless_data_is_an_axis(tmp_path: Path, split: str) -> None:
    tables = {"train": {"fingerprint": "train-1"}, "val": {"fingerprint": "val-1"}} | {split: {"fingerprint": "other"}}
    options = {"data.init_args.max_length": 64}
    write_run(tmp_path / "a", "none", options={"data.init_args.max_length": 128})
    write_run(tmp_path / "b", "lora", options=options, data_summary={"rows": {}, "tables": tables})
    with pytest.raises(UserError, match=rf"different tables \({split} fingerprints\): their quality is not comparable"):
        compare([tmp_path])
    warned = compare([tmp_path], by=["adapter", "data.max_length"]).warnings
    assert any("2 different tables" in sentence for sentence in warned)
    write_run(tmp_path / "c", "lora", seed=1, options=options)
    with pytest.raises(UserError, match="their mean has no meaning"):
        compare([tmp_path], by=["adapter", "data.max_length"])


def test_different_files_matter_if_their_tables_are_unknown(tmp_path: Path) -> None:
    unknown = {"rows": {}, "tables": {}}
    write_run(tmp_path / "a", data_summary=unknown)
    write_run(tmp_path / "b", seed=1, options={"data.init_args.val_file": "other.tsv"}, data_summary=unknown)
    with pytest.raises(UserError, match="data.val_file is val.tsv or other.tsv"):
        compare([tmp_path])


def test_caveats_are_warnings(tmp_path: Path) -> None:
    write_grid(tmp_path, {"none": [0.9, 0.91], "lora": [0.85]})
    machine = {"processor": "y", "cpu_count": 2, "threads": 1, "device": "cpu", "cuda": None}
    changed = {"machine": machine, "packages": {"torch": "2.14.0"}, "git": {"commit": "b" * 40, "dirty": True}}
    write_run(tmp_path / "x", "dora", 0, test_accuracy=0.9, **changed)
    write_run(tmp_path / "y", "dora", 7, status="oom", error="out of memory\nin step 3")
    write_run(tmp_path / "z", "dora", 8, status="interrupted", config=None)
    assert compare([tmp_path]).warnings == [
        f"Left out, interrupted or still running: {tmp_path / 'z'}.",
        "Left out, oom: dora, seed 7: out of memory in step 3.",
        "One seed only: dora, lora. One seed cannot separate the method from chance.",
        "dora, lora have seeds 0, the baseline full 0, 1: differences use the 1 common seed.",
        "test_accuracy is missing for full (2 of 2 runs), lora (1 of 1 runs).",
        "All methods have the learning rate 0.003, and each method has another best one: this compares them at this "
        "rate, not at their best; give each its own (litpeft find_lr, or tune: in an experiment).",
        "2 kinds of machine: speed and peak memory are not comparable (processor x; processor y).",
        "Versions differ: torch 2.13.0 and 2.14.0.",
        "Runs come from 2 commits of the code: aaaaaaaaaa, bbbbbbbbbb.",
        "1 of 4 runs were made with uncommitted changes.",
    ]


def test_a_single_group_with_other_seeds_is_named_in_the_singular(tmp_path: Path) -> None:
    write_grid(tmp_path, {"none": [0.9, 0.91, 0.92, 0.93], "lora": [0.85, 0.86]})
    expected = "lora has seeds 0, 1, the baseline full 0, 1, 2, 3: differences use the 2 common seeds."
    assert expected in compare([tmp_path]).warnings
    write_run(tmp_path / "other", "dora", 8)
    expected = "dora has seeds 8, the baseline full 0, 1, 2, 3: differences need a common seed."
    assert expected in compare([tmp_path]).warnings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"by": ["class_path"]},
            r"--by class_path: no run's .* has it \(did you mean data.class_path or model.adapter",
        ),
        ({"by": ["adaptor"]}, r"did you mean adapter\?"),
        ({"baseline": "qlora"}, "--baseline qlora: no such group; there are full, dora, lora"),
        ({"figures": ["val_acuracy"]}, r"--figures val_acuracy: no run has it \(did you mean val_accuracy\?\)"),
        ({"figures": ["test_accuracy"]}, "--figures test_accuracy: no run has it"),
        (
            {"targets": [("val_speed", 3.0)]},
            "--target val_speed=3: it is unknown whether higher or lower val_speed is better",
        ),
        ({"targets": [("val_loss", float("nan"))]}, "--target val_loss=nan: give a finite number"),
        ({"targets": [("val_loss", float("-inf"))]}, "--target val_loss=-inf: give a finite number"),
        ({"figures": ["seconds_to_val_loss_e"]}, "--figures seconds_to_val_loss_e: no run has it"),
        ({"figures": ["seconds_to_val_loss_1e"]}, "--figures seconds_to_val_loss_1e: no run has it"),
        ({"examples": True}, "--examples: no run saved row results"),
    ],
)
def test_wrong_options_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    write_grid(tmp_path, THREE)
    with pytest.raises(UserError, match=message):
        compare([tmp_path], **options)


def test_wrong_paths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: no such folder"):
        compare([tmp_path / "nowhere"])
    with pytest.raises(UserError, match=r"no record.json in it or below it"):
        compare([tmp_path])
    write_run(tmp_path / "a", status="oom", error="out of memory")
    with pytest.raises(UserError, match=r"none of 1 runs has finished. Left out, oom: .*a: out of memory"):
        compare([tmp_path])
    (tmp_path / "a" / "record.json").write_text("{")
    with pytest.raises(UserError, match=r"a/record.json is not JSON"):
        compare([tmp_path])


def test_groups_are_ordered_by_size_of_numbers_and_then_by_name(tmp_path: Path) -> None:
    for place, size in enumerate(("auto", 32, 4, 0, -1, "all")):
        write_run(tmp_path / str(place), options={"data.init_args.batch_size": size})
    found = [group.label for group in compare([tmp_path], by=["data.batch_size"]).groups]
    assert found == [f"batch_size={size}" for size in (-1, 0, 4, 32, "all", "auto")]


def test_a_sweep_gives_axes_order_and_baseline(tmp_path: Path) -> None:
    published = {"source": "A paper", "note": None, "rows": [{"label": "full", "val_accuracy": 0.92}]}
    write_sweep(tmp_path, published=published | {"rows": [{"label": "full", "peak_reserved_bytes": "2.8e9"}]})
    comparison = compare([tmp_path])
    assert [group.label for group in comparison.groups] == ["lora", "dora", "full"]
    assert comparison.groups[2].axes == {"strategy": "full"}
    assert comparison.groups[0].axes == {"strategy": "lora"}
    assert (comparison.baseline, comparison.title, comparison.question) == ("full", "real", "Is it?")
    assert comparison.published == published | {"rows": [{"label": "full", "peak_reserved_bytes": 2.8e9}]}
    assert comparison.figures[0].name == "val_loss"
    assert "seconds_to_val_accuracy_0.8" in [figure.name for figure in comparison.figures]
    assert comparison.confounded == {}
    assert compare([tmp_path], by=["adapter"]).groups[0].label == "full"  # --by replaces the axes of the sweep
    assert compare([tmp_path], by=["adapter"]).question == "Is it?"
    assert compare([tmp_path / "lora"]).title == "made_up"  # a subfolder of a sweep is a folder of runs


def test_every_format_has_the_published_rows(tmp_path: Path) -> None:
    rows = [{"label": "full of a paper", "val_accuracy": 0.9215}, {"label": "lora of a paper", "val_loss": 0.25}]
    comparison = compare([write_sweep(tmp_path, published={"source": "A paper", "note": "2 epochs", "rows": rows})])
    known = ("label", "source", "val_accuracy_mean", "val_loss_mean")
    table = [[row[name] for name in known] for row in csv.DictReader(io.StringIO(FORMATS["csv"](comparison)))]
    assert [row[1] for row in table] == ["measured"] * 3 + ["published"] * 2
    assert table[3:] == [
        ["full of a paper", "published", "0.9215", ""],
        ["lora of a paper", "published", "", "0.25"],
    ]
    assert json.loads(FORMATS["json"](comparison))["published"]["rows"] == rows
    for form in ("markdown", "latex"):
        lines = FORMATS[form](comparison).splitlines()
        for label, value in (("full of a paper", "92.15"), ("lora of a paper", "0.2500")):
            (line,) = [line for line in lines if label in line]
            assert "(published)" in line
            assert value in line


@pytest.mark.parametrize("unknown", [float("nan"), "nan", float("inf"), "-inf"])
def test_a_published_figure_that_is_not_finite_is_unknown(tmp_path: Path, unknown: Any) -> None:
    rows = [{"label": "a paper", "val_accuracy": unknown, "val_loss": 0.25}]
    comparison = compare([write_sweep(tmp_path, published={"rows": rows})])
    known = [{"label": "a paper", "val_accuracy": None, "val_loss": 0.25}]
    assert json.loads(FORMATS["json"](comparison))["published"]["rows"] == known
    *_, row = csv.DictReader(io.StringIO(FORMATS["csv"](comparison)))
    assert (row["val_accuracy_mean"], row["val_loss_mean"]) == ("", "0.25")


def test_full_fine_tuning_is_shown_as_full_and_both_names_select_it(tmp_path: Path) -> None:
    write_grid(tmp_path / "runs", THREE)
    for name in ("none", "full"):
        assert compare([tmp_path / "runs"], baseline=name).baseline == "full"
    sweep = write_sweep(tmp_path / "sweep", published={"rows": [{"label": "none", "val_accuracy": 0.92}]})
    for name in ("none", "full"):
        assert compare([sweep], baseline=name).baseline == "full"
    assert compare([sweep]).published["rows"] == [{"label": "full", "val_accuracy": 0.92}]
    trials = [{"name": name, "label": name, "axes": {"schedule": name}} for name in ("none", "lora", "dora")]
    write_run(tmp_path / "sweep" / "none" / "seed0", "lora")
    schedules = write_sweep(tmp_path / "schedules", axes=["schedule"], trials=trials, baseline="none")
    for seed in range(3):
        write_run(schedules / "none" / f"seed{seed}", "lora", seed)
    assert compare([schedules]).groups[0].label == "none"  # the axis `schedule` is not the axis of adapters


def test_a_sweep_reports_missing_failed_and_foreign_runs(tmp_path: Path) -> None:
    trials = [{"name": name, "label": name, "axes": {}} for name in ("none", "lora", "qlora-nf4")]
    write_sweep(tmp_path, trials=trials, seeds=[0, 1, 2, 3], target=None)
    write_run(tmp_path / "none" / "seed3", "none", 3, status="oom", error="out of memory")
    comparison = compare([tmp_path])
    assert [(group.label, len(group.runs), len(group.failed)) for group in comparison.groups] == [
        *(("none", 3, 1), ("lora", 3, 0), ("qlora-nf4", 0, 0)),
    ]
    assert comparison.groups[2].estimates == {}
    warnings = "\n".join(comparison.warnings)
    assert f"Left out: {tmp_path / 'dora' / 'seed0'} is not a trial of this sweep." in warnings
    assert "Not yet run: lora (seed 3), qlora-nf4 (seed 0), qlora-nf4 (seed 1)" in warnings
    assert "Left out, oom: none, seed 3: out of memory." in warnings
    write_run(tmp_path / "own")  # not a folder TRIAL/seedN
    assert f"Left out: {tmp_path / 'own'} is not a trial of this sweep." in compare([tmp_path]).warnings
    write_sweep(tmp_path, trials=trials, baseline="qlora-nf4")
    unfinished = compare([tmp_path])
    assert "The baseline, qlora-nf4, has no finished run" in "\n".join(unfinished.warnings)
    assert all(not group.differences for group in unfinished.groups)
    assert compare([tmp_path], baseline="lora").groups[0].differences


def test_a_target_of_a_sweep_may_be_a_metric_whose_direction_the_runs_know(tmp_path: Path) -> None:
    directions = {"metric_directions": {"charm": "higher"}, "other_metrics": {"val_charm": 0.5}}
    file = write_sweep(tmp_path, target={"val_charm": 0.5}) / "sweep.yaml"
    write_grid(tmp_path, THREE, validations=[{"step": 1, "train_seconds": 2.5, "val_charm": 0.6}], **directions)
    assert compare([tmp_path]).groups[0].estimates["seconds_to_val_charm_0.5"].mean == 2.5
    file.write_text(file.read_text().replace("val_charm", "charm"))
    with pytest.raises(UserError, match=r"sweep.yaml: target charm: it is unknown whether higher or lower charm"):
        compare([tmp_path])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", r"sweep.yaml line \d: not valid YAML"),
        ("experiment: x\n", "sweep description: it lacks trials"),
        ("3", "not a valid sweep description"),
        ("trials: []\nexperiment: x\nseeds: [0]\naxes: 3\n", "not a valid sweep description"),
    ],
)
def test_a_broken_sweep_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    write_sweep(tmp_path)
    (tmp_path / "sweep.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        compare([tmp_path])
    write_sweep(tmp_path, published={"rows": [{"val_accuracy": 0.9}]})
    with pytest.raises(
        UserError, match=r"sweep.yaml is not a valid sweep description: published.rows\[0\] lacks label"
    ):
        compare([tmp_path])
    write_sweep(tmp_path, baseline="other")
    with pytest.raises(UserError, match=r"sweep.yaml: baseline other: no such group; there are lora, dora, full"):
        compare([tmp_path])


def test_what_was_found_cannot_be_changed_by_accident(tmp_path: Path) -> None:
    lora = compare([write_grid(tmp_path, THREE)]).groups[2]
    tried = Tried({"lr": 1e-3}, 0.8, 2)
    tuned = Tuned("val_accuracy", [7], [tried], {"lr": 1e-3}, {})
    found = {"mean": [lora.estimates["val_accuracy"], lora.differences["val_accuracy"], tried], "metric": [tuned]}
    for name, results in found.items():
        for result in results:
            with pytest.raises(FrozenInstanceError):
                setattr(result, name, 1.0)


@pytest.mark.parametrize("collects", [True, False])
def test_comparing_leaves_garbage_collection_as_it_was(tmp_path: Path, collects: bool) -> None:
    parser = ArgumentParser()
    add_compare_options(parser)
    options = parser.parse_args([str(write_grid(tmp_path, THREE))])
    before = gc.isenabled()
    try:
        (gc.enable if collects else gc.disable)()
        compare_selected(options)
        assert gc.isenabled() == collects
    finally:
        (gc.enable if before else gc.disable)()


def test_importing_and_comparing_needs_no_torch_no_pandas_and_no_rich(tmp_path: Path) -> None:
    write_grid(tmp_path, THREE)
    arguments = ["compare", str(tmp_path), "--format", "json"]
    code = f"import sys; from litpeft.__main__ import main; assert main({arguments!r}) == 0; "
    code += "sys.exit(any(name in sys.modules for name in ('torch', 'pandas', 'rich', 'scipy.stats', 'lightning')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["baseline"] == "full"


def test_shown_are_the_validation_metrics_that_all_runs_have(tmp_path: Path) -> None:
    for adapter, more in (("none", {"val_f1": 0.4}), ("lora", {})):
        metrics = {"val_charm": 0.5, "test_charm": 0.6} | more
        write_run(tmp_path / adapter, adapter, other_metrics=metrics, metric_directions={"charm": "higher"})
    names = [each.name for each in compare([tmp_path]).figures]
    assert names[:2] == ["val_accuracy", "val_charm"]
    assert not {"test_charm", "val_f1"} & set(names)
