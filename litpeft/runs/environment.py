"""Describe the environment of a run: package versions, machine, and git state."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

PACKAGES = (
    *("litpeft", "torch", "lightning", "transformers", "tokenizers", "datasets", "bitsandbytes"),
    *("torchmetrics", "jsonargparse", "safetensors", "tensorboard", "numpy"),
)


def packages() -> dict[str, str | None]:
    """Return the versions of Python and of the packages that affect results; None for a missing package."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return versions


def machine(device: torch.device) -> dict[str, Any]:
    """Return the processor, thread count and accelerator."""
    cuda = device.type == "cuda"
    return {
        "system": platform.platform(),
        "processor": _processor(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if cuda else device.type,
        "device_bytes": torch.cuda.get_device_properties(device).total_memory if cuda else None,
        "cuda": torch.version.cuda,
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def git_state() -> dict[str, Any] | None:
    """Return the commit of the working directory and whether it has uncommitted changes; None outside a repository."""
    try:
        commit = _git("rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(_git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True, timeout=10).stdout.strip()
