"""The default experiment name and run name, built from the options on the command line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from litpeft.cli.config_files import read_yaml
from litpeft.runs.folder import CONFIG, folder_name
from litpeft.runs.record import FILE_NAME, read_record
from litpeft.runs.strategy_names import stored_name

NOT_IN_NAME = re.compile(  # options that say where a run is written, how files are read, or that the path already shows
    r"config|run_dir|experiment|logger|resume|overwrite|seed_everything|model|data|model\.(adapter(\.quant_type)?|base(\.class_path)?)|print_config"
    r"|trainer\.(accelerator|enable_\w+|logger)|data\.(num_workers|cache_dir|columns|delimiter|encoding|label_\w+)"
    r"|data\.\w+_(file|column)|predictions\.file|benchmarks\..*"
)


def run_names(typed: Sequence[tuple[str, str]], adapter: str, data: str) -> tuple[str, str]:
    """Return the experiment name and the run name.

    The experiment name is the name of the first configuration that sets `data` (for the config.yaml of a run: the
    experiment of that run), else the name of the data set. The run name lists the adapter, the adapter's options, the
    other configurations and the other options. A run name that is too long ends in a hash.

    Args:
        typed: (option, value) pairs from the command line.
        adapter: name of the strategy.
        data: name of the data class.
    """
    configs = [value for key, value in typed if key == "config"]
    experiment = next((_experiment(config) for config in configs if "data" in read_yaml(config)), data.lower())
    varied = [(key, value) for key, value in typed if not NOT_IN_NAME.fullmatch(key)]
    varied.sort(key=lambda pair: not pair[0].startswith("model.adapter."))
    options = [f"{key.rpartition('.')[2]}={_short(value)}" for key, value in varied]
    first = sum(key.startswith("model.adapter.") for key, _ in varied)
    others = [stored_name(Path(config).stem) for config in configs]
    others = [name for name in others if name not in (experiment, adapter, "config")]
    parts = dict.fromkeys([adapter, *options[:first], *others, *options[first:]])
    return experiment, folder_name(",".join(parts))


def _experiment(config: str) -> str:
    path = Path(config)
    if path.name == CONFIG and (path.parent / FILE_NAME).is_file():
        return read_record(path.parent)["experiment"] or path.stem
    return path.stem


def _short(value: str) -> str:
    """Return the last part of a path or of a class path; any other value unchanged."""
    value = Path(value).name if "/" in value else value
    return value.rpartition(".")[2] if re.fullmatch(r"[a-z_]\w*(\.\w+)+", value) else value
