"""The compiled C functions of this folder: compiled on first use by the machine's C compiler, and called with tensors.

The compiled file is kept in litpeft's cache folder. Without a C compiler everything runs on torch alone. Threads are
those of torch, if torch brings GCC's OpenMP library and the compiler is GCC; otherwise the functions use one thread.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from litpeft.hub.cache_dir import default_cache_dir

FOLDER = Path(__file__).parent
# products may be fused with sums; nothing else that changes results is allowed
FLAGS = ["-O3", "-std=gnu11", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"]
LANES = 16  # widths that the functions take are multiples of this


class CompilerError(RuntimeError):
    """The C functions cannot be compiled or loaded here; the message says why."""


class NotForThisMachine(CompilerError):
    """There is no C compiler, or the processor is not one that the functions are for."""


@cache
def compiled() -> ctypes.CDLL:
    """Return the compiled functions.

    Raises:
        NotForThisMachine: the processor has no AVX-512, or there is no C compiler.
        CompilerError: the compiler fails, or the compiled file cannot be kept or loaded.
    """
    compiler = _compiler()
    version = _run([compiler, "--version"])
    openmp = None if "clang" in version else _openmp()
    flags = [*FLAGS, *_machine_flags(), *([] if openmp is None else ["-fopenmp"])]
    texts = [path.read_text() for path in sorted(FOLDER.iterdir()) if path.suffix in (".c", ".h")]
    key = hashlib.sha256(repr((texts, version, flags, str(openmp), _processor())).encode()).hexdigest()[:16]
    folder = default_cache_dir() / "kernels"
    try:
        if not (folder / f"{key}.so").exists():
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                sources = [str(path) for path in sorted(FOLDER.glob("*.c"))]
                # torch's own OpenMP library: a second one would start threads of its own
                libraries = ["-lm"] if openmp is None else ["-lm", str(openmp)]
                _run([compiler, *flags, "-shared", *sources, "-o", f"{scratch}/{key}.so", *libraries])
                os.replace(f"{scratch}/{key}.so", folder / f"{key}.so")  # another process may be reading it
        return ctypes.CDLL(str(folder / f"{key}.so"))
    except OSError as error:
        raise CompilerError(f"the compiled functions cannot be stored in {folder} or loaded ({error})") from error


@cache
def has_tiles() -> bool:
    """Return whether this process may use the AMX tiles of an x86 processor; asks the system for them."""
    return bool(torch.cpu._is_amx_tile_supported() and torch.cpu._init_amx())


@cache
def available() -> bool:
    """Return whether the functions can be compiled and loaded."""
    try:
        compiled()
    except CompilerError:
        return False
    return True


@cache
def has_bf16_products() -> bool:
    """Return whether the functions can multiply bf16 numbers: with AMX tiles, or with AVX-512 vectors."""
    return available() and hasattr(compiled(), "product_with_frozen")


def check_whole(*tensors: Tensor) -> None:
    """Refuse tensors whose numbers are no multiple of 16: the functions would write behind them."""
    if any(t.numel() % LANES for t in tensors):
        raise ValueError(f"the numbers of a tensor must be a multiple of {LANES}: {[tuple(t.shape) for t in tensors]}")


def call(name: str, *arguments: Any) -> None:
    """Call a function with tensors (None for a null pointer), int64, float and structures.

    With fake and meta tensors, as in memory estimates, nothing is called.
    """
    kinds = tuple(map(type, arguments))
    tensors, structures = _places(kinds)
    if tensors is None:
        return
    values = list(arguments)
    for place in tensors:
        if values[place].is_meta:
            return
        values[place] = values[place].data_ptr()
    for place in structures:
        values[place] = ctypes.byref(values[place])
    _function(name, kinds)(*values)


@cache
def _places(kinds: tuple[type, ...]) -> tuple[list[int] | None, list[int]]:
    """Return the places of tensors, None if one is fake, and of structures among arguments of these types."""
    tensors = [place for place, kind in enumerate(kinds) if issubclass(kind, Tensor)]
    structures = [place for place, kind in enumerate(kinds) if issubclass(kind, ctypes.Structure)]
    return None if any(issubclass(kind, FakeTensor) for kind in kinds) else tensors, structures


@cache
def _function(name: str, kinds: tuple[type, ...]) -> Any:
    """Return a function that takes arguments of these types, tensors as addresses."""
    function = compiled()[name]  # a new object, unlike an attribute: its types are its own
    numbers = {int: ctypes.c_int64, bool: ctypes.c_int64, float: ctypes.c_float}
    function.argtypes = [numbers.get(kind, ctypes.c_void_p) for kind in kinds]
    function.restype = None
    return function


def _compiler() -> str:
    named = os.environ.get("CC")
    for name in [named] if named else ["gcc", "cc", "clang"]:
        if found := shutil.which(name):
            return found
    raise NotForThisMachine(f"there is no C compiler {named or '(gcc, cc or clang)'} on the PATH")


def _machine_flags() -> list[str]:
    """Return the flags that let the compiler use all instructions of this processor."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        raise NotForThisMachine("the C functions need a processor with AVX-512: on others torch is faster")
    return ["-march=native", "-mprefer-vector-width=512", *([] if has_tiles() else ["-U__AMX_BF16__"])]


def _openmp() -> Path | None:
    """Return GCC's OpenMP library that torch has loaded; None if it uses another one."""
    maps = Path("/proc/self/maps")
    loaded = maps.read_text().split() if maps.exists() else []
    return next((Path(part) for part in loaded if "libgomp" in os.path.basename(part)), None)


def _processor() -> str:
    """Return what distinguishes this processor from others that share the cache folder."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    found = {line for line in lines if line.startswith(("flags", "Features", "model name", "CPU part"))}
    return repr(sorted(found)) + platform.processor()


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise CompilerError(f"{command[0]} cannot be run ({error})") from error
    if done.returncode:
        first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip()[:200])
        raise CompilerError(f"{' '.join(command[:2])} ... failed ({first})")
    return done.stdout
