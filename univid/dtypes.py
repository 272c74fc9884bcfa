"""The types of numbers by their short names, for command lines and nodes. Imports torch only to make one."""

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}  # that networks compute in: torch's names
STORED_DTYPES = DTYPES | {"fp8_e4m3fn": "float8_e4m3fn"}  # that a host may keep weights in


def dtype_of(name: str):
    """The torch.dtype of a short name, or of torch's own.

    Raises:
        ValueError: neither.
    """
    import torch

    if name not in STORED_DTYPES and name not in STORED_DTYPES.values():
        raise ValueError(f"dtype must be one of {', '.join(STORED_DTYPES)}, got {name!r}.")
    return getattr(torch, STORED_DTYPES.get(name, name))
