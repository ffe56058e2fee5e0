"""In how many bits networks compute."""

import torch


def training_dtype(device: torch.device, *, mixed: bool) -> torch.dtype:
    """In what a network computes while it learns; weights, losses and optimizers are float32 all the same.

    Args:
        device: Where the network is.
        mixed: Whether fewer bits are allowed, where the device is faster with them.

    Returns:
        bfloat16 on a CPU with units for it (AVX-512 BF16: AMD's since Zen 4, Intel's with AMX), where a
        step takes half to two thirds of the seconds; on others it is slower than float32. On a GPU as in
        `inference_dtype`.
    """
    if device.type == "cpu":
        has_units = torch.cpu.get_capabilities().get("avx512_bf16", False)
        return torch.bfloat16 if mixed and has_units else torch.float32
    return inference_dtype(device, mixed=mixed)


def inference_dtype(device: torch.device, *, mixed: bool) -> torch.dtype:
    """In what a network computes while it predicts and is judged.

    Args:
        device: Where the network is.
        mixed: Whether fewer bits are allowed.

    Returns:
        bfloat16 or, where there is no such, float16 on a GPU. float32 on a CPU: a mask shall not depend on
        which.
    """
    if device.type == "cpu" or not mixed:
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Lets networks compute in fewer bits within a `with`.

    Args:
        device: Where they are.
        dtype: What the functions of this module gave; float32 changes nothing.
    """
    enabled = dtype != torch.float32
    return torch.autocast(device.type, dtype=dtype if enabled else None, enabled=enabled)
