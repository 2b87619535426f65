"""Transfers of small tensors between host and GPU for which neither waits."""

import torch
from torch import Tensor


def copy_to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on the device. The host continues while it is copied."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


class HostCopy:
    """A copy of a tensor on the host. A GPU makes it when it gets there, while the host continues."""

    def __init__(self, tensor: Tensor) -> None:
        self._copy = tensor.to("cpu", non_blocking=True)  # from a GPU, into pinned memory
        self._event = None
        if tensor.is_cuda:
            self._event = torch.cuda.Event(blocking=True)  # a wait that leaves its core to the data workers
            self._event.record(torch.cuda.current_stream(tensor.device))

    def tolist(self) -> list[float]:
        """Wait for the copy, and return its numbers."""
        if self._event is not None:
            self._event.synchronize()
        numbers: list[float] = self._copy.tolist()
        return numbers
