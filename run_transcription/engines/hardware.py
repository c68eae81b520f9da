"""What this machine's device can: which one `auto` means, in which dtype, and what is refused."""

from __future__ import annotations

import platform
import time
from pathlib import Path

from run_transcription.errors import ModelNotLoaded
from run_transcription.records import ModelSpec


def device(wanted: str) -> str:
    """Resolve `auto`; raises ModelNotLoaded for a GPU that is not here."""
    import torch

    if wanted == "cuda" and not torch.cuda.is_available():
        raise ModelNotLoaded(
            f"--device cuda: torch {torch.__version__} sees no GPU here; use --device cpu, or look at nvidia-smi"
        )
    return wanted if wanted != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def name(on: str) -> str:
    """Return what a device's maker calls it."""
    import torch

    if on == "cuda":
        return str(torch.cuda.get_device_name())
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    model = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine()
    )
    return f"{model}, {torch.backends.cpu.get_cpu_capability()}"


def make_context(wanted: str) -> None:
    """Make the GPU's context, which takes up to a second: in a thread, while other libraries are imported."""
    import torch

    if wanted == "cpu" or not torch.cuda.is_available():
        return
    try:
        torch.empty(1, device="cuda")
    except RuntimeError as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ModelNotLoaded(f"the GPU can't be used: {reason}; look at nvidia-smi, or use --device cpu") from error


def dtype(wanted: str, on: str) -> str:
    """Resolve auto: float16 on a GPU; on a CPU bfloat16 where it multiplies matrices natively, else float32."""
    import torch

    if wanted.startswith("int8"):
        raise ModelNotLoaded(f"--dtype {wanted}: torch has not got it here; use --engine ctranslate2")
    if wanted == "bfloat16" and not has_bfloat16(on):
        raise ModelNotLoaded("--dtype bfloat16: this GPU has not got it; use --dtype float16")
    if wanted != "auto":
        return wanted
    if on == "cuda":
        return "float16"
    able = torch.cpu.get_capabilities()
    return "bfloat16" if able.get("amx_bf16") or able.get("avx512_bf16") else "float32"


def now(on: str) -> float:
    """Return the time at which a device has done what it was told."""
    import torch

    if on == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def has_bfloat16(on: str) -> bool:
    """Tell whether a device computes in bfloat16; GPUs do from compute capability 8.0 on."""
    import torch

    return on == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False)


def check_attention(spec: ModelSpec, on: str) -> None:
    """Raise ModelNotLoaded for an attention that is not here."""
    if spec.engine != "torch":
        if spec.attention != "sdpa":
            raise ModelNotLoaded(f"--attention {spec.attention}: --engine {spec.engine} has its own; leave it out")
        return
    from transformers.utils import is_flash_attn_2_available

    if spec.attention == "flash_attention_2" and (on != "cuda" or not is_flash_attn_2_available()):
        raise ModelNotLoaded(
            "--attention flash_attention_2 wants a GPU and the package flash-attn; use --attention sdpa"
        )
