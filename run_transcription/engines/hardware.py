"""What this machine's device can: which one `auto` means, in which dtype, and what is refused."""

from __future__ import annotations

from run_transcription.errors import ModelNotLoaded


def device(wanted: str) -> str:
    """Resolve `auto`; raises ModelNotLoaded for a GPU that is not here."""
    import torch

    if wanted == "cuda" and not torch.cuda.is_available():
        raise ModelNotLoaded(
            f"--device cuda: torch {torch.__version__} sees no GPU here; use --device cpu, or look at nvidia-smi"
        )
    return wanted if wanted != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def make_context(wanted: str) -> None:
    """Make the GPU's context, which takes up to a second: in a thread, while other libraries are imported."""
    import torch

    if wanted != "cpu" and torch.cuda.is_available():
        torch.empty(1, device="cuda")


def dtype(wanted: str, on: str) -> str:
    """Resolve auto: float16 on a GPU; on a CPU bfloat16 where it multiplies matrices natively, else float32."""
    import torch

    if wanted == "bfloat16" and not has_bfloat16(on):
        raise ModelNotLoaded("--dtype bfloat16: this GPU has not got it; use --dtype float16")
    if wanted != "auto":
        return wanted
    if on == "cuda":
        return "float16"
    able = torch.cpu.get_capabilities()
    return "bfloat16" if able.get("amx_bf16") or able.get("avx512_bf16") else "float32"


def has_bfloat16(on: str) -> bool:
    """Tell whether a device computes in bfloat16; GPUs do from compute capability 8.0 on."""
    import torch

    return on == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False)


def check_attention(attention: str, on: str) -> None:
    """Raise ModelNotLoaded for an attention that is not here."""
    from transformers.utils import is_flash_attn_2_available

    if attention == "flash_attention_2" and (on != "cuda" or not is_flash_attn_2_available()):
        raise ModelNotLoaded(
            "--attention flash_attention_2 wants a GPU and the package flash-attn; use --attention sdpa"
        )
