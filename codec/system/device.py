"""Devices: the one that computes where none is named, and names of devices."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch


def default_device(environment: Mapping[str, str] = os.environ) -> str:
    """CUDA, under torchrun the process's own GPU, else MPS, else the CPU: the first of them that is there."""
    if torch.cuda.is_available():
        return f"cuda:{environment.get('LOCAL_RANK', 0)}"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def device_name(device: torch.device) -> str:
    """Product name of a CUDA device; the type of another one."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
