"""On what a benchmark ran: printed with every figure."""

from __future__ import annotations

import os
import platform
import resource
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    import torch


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """`load_average` is the machine's at the start: others' work shows in our times.

    `peak_memory_mb` is the most that this process ever held, all methods together.
    """

    cpu: str
    cores: int
    threads: int
    torch: str
    transformers: str
    python: str
    dtype: str
    device: str
    date: str
    load_average: float
    peak_memory_mb: float

    @property
    def headline(self) -> str:
        return (
            f"{self.cpu}, {self.cores} cores, threads: {self.threads}, {self.dtype} on "
            f"{self.device}, torch {self.torch}, transformers {self.transformers}, "
            f"{self.date}, load average {self.load_average:.1f} at the start"
        )


def describe_machine(device: torch.device, dtype: torch.dtype, load_average: float) -> Machine:
    """The facts, to be asked for at the end of the run."""
    import torch  # takes seconds, and who only drives a server needs none of it
    import transformers

    return Machine(
        cpu=processor_name(),
        cores=os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        torch=str(torch.__version__),
        transformers=transformers.__version__,
        python=platform.python_version(),
        dtype=str(dtype).removeprefix("torch."),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        load_average=load_average,
        peak_memory_mb=peak_memory_mb(),
    )


def processor_name() -> str:
    """The model name that Linux reports, else what Python knows."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def peak_memory_mb() -> float:
    """Highest resident size of this process; the kernel counts in KiB, macOS in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def resident_mb(pid: int) -> float:
    """Resident memory of a process and all below it, from Linux's /proc; 0 where there is none.

    Pages that two of them share, as those of mapped weights, count twice.
    """
    folder = Path("/proc") / str(pid)
    try:
        status = (folder / "status").read_text().splitlines()
        children = [file.read_text().split() for file in folder.glob("task/*/children")]
    except OSError:  # it has ended
        return 0.0
    own = sum(int(line.split()[1]) for line in status if line.startswith("VmRSS:")) / 2**10
    return own + sum(resident_mb(int(child)) for group in children for child in group)
