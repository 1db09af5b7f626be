"""The default name and place of a run: `runs/EXPERIMENT/WHAT_VARIES/seedN`, from the options that were typed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from litpeft.cli.config_files import read_yaml
from litpeft.runs.folder import CONFIG, folder_name
from litpeft.runs.record import FILE_NAME, read_record

NOT_VARIED = re.compile(  # options that are not in a run's name: where it goes, what its folder says, how text is read
    r"config|run_dir|experiment|resume|overwrite|seed_everything|model|data|model\.adapter(\.quant_type)?|print_config"
    r"|trainer\.(accelerator|enable_\w+|logger)|data\.(num_workers|cache_dir|columns|delimiter|encoding|label_\w+)"
    r"|data\.\w+_(file|column)|predictions\.file|benchmarks\..*"
)


def run_names(typed: Sequence[tuple[str, str]], adapter: str, data: str) -> tuple[str, str]:
    """(experiment, run name) from the options that were typed, as (option, value).

    The experiment is the name of the first configuration that says which data (of a run's own, its experiment), or of
    the data set where there is none. The run's name is the adapter's and what was set beside it: its options first, by
    their last part, then the other configurations, then the other options. A name that is too long ends in a hash.
    """
    configs = [value for key, value in typed if key == "config"]
    experiment = next((_experiment(config) for config in configs if "data" in read_yaml(config)), data.lower())
    varied = [(key, value) for key, value in typed if not NOT_VARIED.fullmatch(key)]
    varied.sort(key=lambda pair: not pair[0].startswith("model.adapter."))
    options = [f"{key.rpartition('.')[2]}={_short(value)}" for key, value in varied]
    first = sum(key.startswith("model.adapter.") for key, _ in varied)
    others = [stem for stem in (Path(config).stem for config in configs) if stem not in (experiment, adapter, "config")]
    parts = dict.fromkeys([adapter, *options[:first], *others, *options[first:]])
    return experiment, folder_name(",".join(parts))


def _experiment(config: str) -> str:
    path = Path(config)
    if path.name == CONFIG and (path.parent / FILE_NAME).is_file():
        return read_record(path.parent)["experiment"] or path.stem
    return path.stem


def _short(value: str) -> str:
    """A path by its last part, a class by its name; a number stays as it is."""
    value = Path(value).name if "/" in value else value
    return value.rpartition(".")[2] if re.fullmatch(r"[a-z_]\w*(\.\w+)+", value) else value
