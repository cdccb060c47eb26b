"""The device that models run on, and what it lacks."""

import os

import psutil
import torch


def choose_device() -> torch.device:
    """Choose the GPU where there is one, the CPU otherwise."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def memory_bytes(device: torch.device) -> int:
    """The memory that a device has in all, in bytes; of the CPU the machine's."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def used_bytes(device: torch.device) -> int:
    """The memory of a device that this process's tensors took at the most; of the CPU what the process has now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return psutil.Process().memory_info().rss


def emulates_bfloat16() -> bool:
    """Tell if this CPU is known to have no bfloat16 instructions; False where torch does not say."""
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    instructions = [has for name, has in capabilities.items() if "bf16" in name]
    return bool(instructions) and not any(instructions)
