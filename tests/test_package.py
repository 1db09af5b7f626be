"""The installed package: its imports need no developer packages, and the wheel contains the configurations."""

from __future__ import annotations

import os
import pkgutil
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import litpeft

REPO = Path(__file__).parents[1]
PIN = r"^([\w.-]+)==([^ ;\n]+)"
DEV_ONLY = ("pytest", "hypothesis", "peft", "ruff", "hatchling", "accelerate", "statsmodels", "playwright")


def test_every_module_imports_without_developer_packages() -> None:
    blocked = [*DEV_ONLY, "plotly", "kaleido", "ray", "submitit", "optuna", "lm_eval"]
    modules = [m.name for m in pkgutil.walk_packages(litpeft.__path__, "litpeft.") if not m.name.endswith("__main__")]
    assert len(modules) > 25
    code = f"import sys\nfor name in {blocked}: sys.modules[name] = None\nimport importlib\n"
    code += f"for name in {modules}: importlib.import_module(name)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_lock_file_has_hashes_for_all_tested_packages() -> None:
    def pins(text: str) -> dict[str, str]:
        return {re.sub("[-_.]+", "-", name).lower(): version for name, version in re.findall(PIN, text, re.MULTILINE)}

    lock = (REPO / "requirements.lock").read_text()
    locked, tested = pins(lock), pins((REPO / "constraints.txt").read_text())
    assert len(tested) > 100
    assert tested.items() - locked.items() == {("torch", tested["torch"])}  # its build depends on the machine
    assert len(re.findall(r" \\\n {4}--hash=sha256:[0-9a-f]{64}", lock)) >= len(locked)


@pytest.mark.slow
def test_the_wheel_contains_configs_and_experiments(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(REPO)]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("litpeft-*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    names = {str(p.relative_to(tmp_path / "site")) for p in (tmp_path / "site").rglob("*") if p.is_file()}
    assert {
        "litpeft/configs/demo.yaml",
        "litpeft/configs/adapters/lora.yaml",
        "litpeft/configs/minilm_sst2.yaml",
        "litpeft/experiments/optimizers/optimizers.yaml",
        "litpeft/analysis/report/page.html",
        "litpeft/benchmarks/tasks/lora_insights.yaml",
        "litpeft/benchmarks/tasks/mmlu/_mmlu.yaml",
    } <= names
    assert not [name for name in names if name.startswith("tests/")]
    listed = subprocess.run(
        [sys.executable, "-m", "litpeft", "configs", "lora"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
    )
    assert listed.stdout == (REPO / "configs" / "adapters" / "lora.yaml").read_text()
