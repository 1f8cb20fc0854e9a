"""Find the instruction sets of this machine's CPU without loading torch."""

from __future__ import annotations

from functools import cache
from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")
"""Where Linux describes the CPU."""
CAPABILITIES = {
    "AVX512": {"avx512f", "avx512vl", "avx512bw", "avx512dq", "fma"},
    "AVX2": {"avx2", "fma"},
}
"""Names that torch gives to vector instruction sets, the widest first, and the features that each needs."""


def vector_instructions() -> str:
    """Return the widest vector instruction set of the CPU, by the name that torch uses.

    Kernels differ between these sets, and so may the last bits of their results.

    Returns
    -------
    str
        ``AVX512``, ``AVX2``, or another name from torch.
    """
    features = _features()
    if features is None:
        import torch  # takes seconds

        return torch.backends.cpu.get_cpu_capability()
    return next((name for name, needed in CAPABILITIES.items() if needed <= features), "DEFAULT")


def has_fast_bfloat16() -> bool:
    """Return whether the CPU has arithmetic for bfloat16.

    Returns
    -------
    bool
        Whether it is faster than float32 there.
    """
    features = _features()
    if features is None:
        import torch

        found: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # missing in older torch
        return bool(found.get("amx_bf16") or found.get("avx512_bf16"))
    return bool(features & {"amx_bf16", "avx512_bf16"})


@cache
def _features() -> frozenset[str] | None:
    """Read the features of an x86 CPU; None where Linux does not list them."""
    try:
        lines = CPU_INFO.read_text(errors="replace").splitlines()
    except OSError:
        return None
    flags = (line.partition(":")[2] for line in lines if line.startswith("flags"))
    return next((frozenset(words.split()) for words in flags), None)
