"""`litpeft configs`: list, print or copy the packaged configurations."""

from __future__ import annotations

import shutil
from pathlib import Path

from litpeft.cli.config_files import find_config, packaged_configs
from litpeft.commands.parser import CommandParser
from litpeft.errors import UserError


def main(arguments: list[str]) -> int:
    parser = CommandParser("configs", description=__doc__)
    parser.add_argument(
        "name", nargs="?", help="configuration to print (default: list all, with the command that runs each)"
    )
    parser.add_argument(
        "--copy", metavar="FOLDER", help="copy the named configuration, or all of them, into a folder for editing"
    )
    options = parser.parse_args(arguments)
    files = {options.name: Path(find_config(options.name))} if options.name else packaged_configs()
    if options.copy:
        _copy(files, Path(options.copy))
    elif options.name:
        print(files[options.name].read_text(encoding="utf-8"), end="")
    else:
        shown = {("none (or full)" if name == "none" else name): path for name, path in files.items()}
        width = max(map(len, shown))
        for name, path in shown.items():
            command = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("#").strip()
            print(f"{name:{width}}  {command}")
    return 0


def _copy(files: dict[str, Path], folder: Path) -> None:
    taken = [folder / path.name for path in files.values() if (folder / path.name).exists()]
    if taken:
        raise UserError(f"--copy: {taken[0]} exists already; give another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    for path in files.values():
        print(shutil.copy(path, folder / path.name))
