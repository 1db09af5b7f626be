"""`litpeft configs`: the configurations that come with the package."""

from __future__ import annotations

import shutil
from pathlib import Path

from litpeft.cli.config_files import find_config, shipped_files
from litpeft.commands.parser import CommandParser
from litpeft.errors import UserError


def main(arguments: list[str]) -> int:
    parser = CommandParser("configs", description=__doc__)
    parser.add_argument(
        "name", nargs="?", help="print this one; without it, all are listed with the command that runs them"
    )
    parser.add_argument(
        "--copy", metavar="FOLDER", help="copy it (or all, where none is named) into a folder, to be changed"
    )
    options = parser.parse_args(arguments)
    files = {options.name: Path(find_config(options.name))} if options.name else shipped_files()
    if options.copy:
        _copy(files, Path(options.copy))
    elif options.name:
        print(files[options.name].read_text(encoding="utf-8"), end="")
    else:
        width = max(map(len, files))
        for name, path in files.items():
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
