"""Convert a merged model to a GGUF file with the converter of llama.cpp."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from litpeft.errors import UserError

CONVERTER = "convert_hf_to_gguf.py"
TYPES = {"bf16": "bf16", "fp16": "f16", "fp32": "f32"}  # dtype -> the converter's name


def find_converter() -> Path:
    """Return the converter: on the PATH, or in the folder that the environment variable LLAMA_CPP names.

    Raises:
        UserError: there is none.
    """
    folders = [os.environ.get("LLAMA_CPP", ""), os.environ.get("PATH", "")]
    # not an executable file in every clone, so shutil.which(CONVERTER) with its default mode could miss it
    found = shutil.which(CONVERTER, mode=os.F_OK, path=os.pathsep.join(filter(None, folders)))
    if found is None:
        raise UserError(
            f"--format gguf needs {CONVERTER} of llama.cpp on the PATH or in the folder $LLAMA_CPP; or give --format "
            f"merged, and run `python {CONVERTER} OUT --outfile OUT.gguf` where it is."
        )
    return Path(found)


def convert(converter: Path, merged: Path, file: Path, dtype: str) -> str:
    """Convert a merged model, and return a phrase about the file.

    Args:
        converter: see `find_converter`.
        merged: folder of the merged model.
        file: file to write.
        dtype: dtype of its weights.

    Raises:
        UserError: the converter fails, or writes a file that the package gguf cannot read.
    """
    command = [sys.executable, str(converter), str(merged), "--outfile", str(file), "--outtype", TYPES[dtype]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UserError(f"--format gguf: {converter} failed: {said}")
    try:
        from gguf import GGUFReader

        tensors = len(GGUFReader(file).tensors)
    except ImportError as error:
        raise UserError("--format gguf needs the package gguf, as the converter does: pip install gguf.") from error
    except (OSError, ValueError) as error:
        raise UserError(f"--format gguf: {converter} wrote no GGUF file: {error}.") from error
    return f"{file.name}, {tensors} tensors in {dtype}, {file.stat().st_size:,} bytes"
