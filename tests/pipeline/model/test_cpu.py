"""Test that CPU features are found without torch, and as torch finds them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from emseg_core.model import cpu


@pytest.fixture(autouse=True)
def _no_cache() -> None:
    cpu._features.cache_clear()


def test_as_torch_finds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cpu.vector_instructions() == torch.backends.cpu.get_cpu_capability()
    here = cpu.vector_instructions(), cpu.has_fast_bfloat16()
    cpu._features.cache_clear()
    monkeypatch.setattr(cpu, "CPU_INFO", Path("/nowhere"))
    assert cpu._features() is None
    assert (cpu.vector_instructions(), cpu.has_fast_bfloat16()) == here


@pytest.mark.parametrize(
    ("flags", "instructions", "bfloat16"),
    [
        ("fpu sse4_2", "DEFAULT", False),
        ("avx2 sse4_2", "DEFAULT", False),
        ("avx2 fma", "AVX2", False),
        ("avx2 fma avx512f avx512dq avx512bw", "AVX2", False),
        ("avx2 fma avx512f avx512dq avx512bw avx512vl", "AVX512", False),
        ("avx2 fma avx512f avx512dq avx512bw avx512vl avx512_bf16", "AVX512", True),
        ("avx2 fma avx512f avx512dq avx512bw avx512vl amx_bf16", "AVX512", True),
    ],
)
def test_features(flags: str, instructions: str, bfloat16: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nvendor_id\t: AuthenticAMD\nflags\t\t: {flags}\nbugs\t\t: spectre\n")
    monkeypatch.setattr(cpu, "CPU_INFO", tmp_path / "cpuinfo")
    assert (cpu.vector_instructions(), cpu.has_fast_bfloat16()) == (instructions, bfloat16)


def test_a_cpu_without_flags_is_asked_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nFeatures\t: fp asimd\n")
    monkeypatch.setattr(cpu, "CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "SVE256")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"sve_bf16": True}, raising=False)
    assert (cpu.vector_instructions(), cpu.has_fast_bfloat16()) == ("SVE256", False)
