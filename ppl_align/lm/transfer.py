"""From the host to the device, without waiting for the device.

A plain copy of host memory to a GPU waits until everything queued there before it is done, and a step of decoding
needs several small ones: which rows to read, in which state of its automaton each row is. From pinned memory they are
queued like any other work. What is large and does not change (a row of the vocabulary for each state) is copied once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CPU = torch.device("cpu")


def upload(values: Any, device: torch.device) -> Tensor:
    """``torch.as_tensor(values)`` on a device; the host goes on at once."""
    host = torch.as_tensor(values)
    if device.type == "cuda" and host.device == CPU:
        return host.pin_memory().to(device, non_blocking=True)  # its memory is kept until the copy is made
    return host.to(device)


class Resident:
    """A tensor that does not change, and its copy on each device, made when it is first asked for."""

    def __init__(self, host: Tensor) -> None:
        self.host = host
        self._copies: dict[torch.device, Tensor] = {}

    def on(self, device: torch.device) -> Tensor:
        if device not in self._copies:
            self._copies[device] = upload(self.host, device)
        return self._copies[device]
