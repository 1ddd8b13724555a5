"""The processes of a run, through accelerate: one, or as many as torchrun started."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn


class Parallel:
    """This process among all of the run; `rank` counts from 0, process 0 writes the files."""

    def __init__(self) -> None:
        from accelerate import Accelerator
        from accelerate.utils import parse_flag_from_env

        several = int(os.environ.get("WORLD_SIZE", "1")) > 1
        # Without this, accelerate starts no process group where there are only CPUs.
        cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or (
            several and not torch.cuda.is_available()
        )
        self._accelerator = Accelerator(cpu=cpu)
        self.rank: int = self._accelerator.process_index
        self.world: int = self._accelerator.num_processes
        self.device: torch.device = self._accelerator.device

    def place(self, module: nn.Module) -> nn.Module:
        """The module, in place, on this process's device.

        Channels last: the layout that the CPU's convolutions compute in, forward and backward, so
        that nothing is laid out anew around each of them.
        """
        return _lay_out(module.to(self.device), torch.channels_last)

    def placed(self, x: Tensor) -> Tensor:
        """Inputs (B, ...) on this process's device, pictures channels last."""
        x = x.to(self.device)
        return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x

    def prepare(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
        """The module on its device, wrapped where gradients are to be shared, and the optimiser."""
        return self._accelerator.prepare(module, optimizer)

    def backward(self, loss: Tensor) -> None:
        """Gradients of the mean of all processes' losses."""
        self._accelerator.backward(loss)

    def clip(self, module: nn.Module, norm: float) -> None:
        """Limit the norm of all gradients together; 0 leaves them."""
        if norm:
            self._accelerator.clip_grad_norm_(module.parameters(), norm)

    def total(self, value: Tensor) -> Tensor:
        """The sum over all processes of a small tensor on the CPU."""
        if self.world == 1:
            return value
        summed: Tensor = self._accelerator.reduce(value.to(self.device), "sum")
        return summed.cpu()

    def share_buffers(self, module: nn.Module) -> None:
        """Give every process the BatchNorm statistics of process 0."""
        if self.world > 1:
            for buffer in module.buffers():
                torch.distributed.broadcast(buffer, src=0)

    def wait(self) -> None:
        """Until all processes are here."""
        self._accelerator.wait_for_everyone()

    def release(self, wrapped: nn.Module, module: nn.Module) -> None:
        """Take what accelerate wrapped off the module, and leave it as converters expect it."""
        self._accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)
        self._accelerator.free_memory()
        _lay_out(module, torch.contiguous_format)


def _lay_out(module: nn.Module, layout: torch.memory_format) -> nn.Module:
    """Set the memory layout of kernels, in place."""
    move: Any = module.to  # its declaration forgets this argument
    move(memory_format=layout)
    return module
