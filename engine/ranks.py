"""The ranks of a split model, as rank 0 sees them: started, told what to do, watched, ended.

Rank 0 is the engine process. It alone drafts, picks and decides; the others (`follower.py`) repeat
what it does to its slots and run the same rows, so all of them stay alike. Orders go over a socket
to each; tensors, and the sums within a layer, over torch.distributed: NCCL with a GPU for each
rank, gloo on a CPU. All of them are on this machine and talk over loopback.
"""

from __future__ import annotations

import os
import selectors
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from .config import EngineConfig
from .orders import Forward, Join, Order
from .pretrained import TargetError, choose_device
from .rows import Rows
from .wire import encode_frame

COMMAND = (sys.executable, "-m", "engine.follower")
LOOPBACK = "127.0.0.1"
INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
JOIN_TIMEOUT = timedelta(minutes=2)
GOT_SO_FAR = b"."  # what the others say, twice: when they are there, and when they have loaded


class Ranks:
    """The processes of all ranks but 0, which is this one."""

    def __init__(self, config: EngineConfig) -> None:
        """Start them and become a group. Raises `TargetError` where that is not possible."""
        self.size = config.tensor_parallel_size
        self._lines: list[socket.socket] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        self._is_closing = False
        if dist.is_initialized():
            raise TargetError("this process has a torch.distributed group: close what has it first")
        try:
            for _ in range(1, self.size):
                self._start()
            self.await_word()
            with socket.create_server((LOOPBACK, 0)) as listener:
                port = listener.getsockname()[1]
                lives = threading.current_thread() is threading.main_thread()
                for rank, line in enumerate(self._lines, start=1):
                    line.sendall(encode_frame(Join(config, rank, port, ends_with_starter=lives)))
                join(config, 0, port, listener)
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        self._lines.append(ours)
        with theirs:
            end = theirs.fileno()
            command = [*COMMAND, str(end)]
            self._processes.append(
                subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=(end,))
            )

    def await_word(self) -> None:
        """Wait until each has got so far. Raises `TargetError` where one has ended instead."""
        for rank, line in enumerate(self._lines, start=1):
            if line.recv(len(GOT_SO_FAR)) != GOT_SO_FAR:
                raise TargetError(
                    f"rank {rank} of {self.size} ended while it was loading; its own messages say "
                    "why"
                )

    def tell(self, order: Order) -> None:
        """Let the others do what this rank does next. Raises `OSError` where one is gone."""
        frame = encode_frame(order)
        for line in self._lines:
            line.sendall(frame)

    def forward(self, ids: Tensor, rows: Rows) -> None:
        """Let the others run the rows with ids [B*T] that this rank runs next."""
        self.tell(Forward(rows.slots, rows.lengths, rows.count, rows.extent))
        dist.broadcast(pack_rows(ids, rows), src=0)

    def watch(self, on_loss: Callable[[], None]) -> None:
        """From now on call `on_loss`, in a thread of its own, when one of them has ended."""
        threading.Thread(target=self._watch, args=(on_loss,), daemon=True, name="ranks").start()

    def _watch(self, on_loss: Callable[[], None]) -> None:
        with selectors.DefaultSelector() as selector:
            for line in self._lines:
                selector.register(line, selectors.EVENT_READ)
            selector.select()  # they say nothing any more: this is an end
        if not self._is_closing:
            on_loss()

    def close(self) -> None:
        """End the others, who hold nothing that has to be saved, and the group."""
        self._is_closing = True
        for process in self._processes:
            process.kill()
            process.wait()
        for line in self._lines:
            line.close()
        if dist.is_initialized():
            dist.destroy_process_group()


def join(config: EngineConfig, rank: int, port: int, listener: socket.socket | None = None) -> None:
    """Become `rank` of the group that meets at `port`; rank 0 brings the socket that listens."""
    size, device = config.tensor_parallel_size, choose_device(config.device)
    store = dist.TCPStore(  # type: ignore[attr-defined]  # torch does not list it
        LOOPBACK,
        port,
        size,
        is_master=rank == 0,
        timeout=JOIN_TIMEOUT,
        wait_for_workers=False,
        master_listen_fd=None if listener is None else listener.detach(),
    )
    with group_variables(rank):
        if device.type == "cuda":
            torch.cuda.set_device(rank)
            own = torch.device("cuda", rank)
            dist.init_process_group("nccl", store=store, rank=rank, world_size=size, device_id=own)
        else:
            dist.init_process_group("gloo", store=store, rank=rank, world_size=size)


@contextmanager
def group_variables(rank: int) -> Iterator[None]:
    """What torch.distributed and transformers read from the environment where groups are made."""
    wanted = {"LOCAL_RANK": str(rank)}
    if sys.platform == "linux":
        wanted |= {
            name: os.environ.get(name, "lo")
            for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
        }
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def share_threads(config: EngineConfig) -> None:
    """Set torch's threads: those asked for, or no more than this rank's part of the processors."""
    if config.threads:
        torch.set_num_threads(config.threads)
    elif config.tensor_parallel_size > 1:
        part = (os.cpu_count() or 1) // config.tensor_parallel_size
        torch.set_num_threads(max(1, min(torch.get_num_threads(), part)))


def pack_rows(ids: Tensor, rows: Rows) -> Tensor:
    """What a forward has on the device, as one table [B,T,2+T]: ids, offsets, visible rows."""
    shape = (rows.batch, rows.count, 1)
    return torch.cat((ids.view(shape), rows.offsets.view(shape), rows.visible.long()), dim=-1)


def unpack_rows(order: Forward, table: Tensor) -> tuple[Tensor, Rows]:
    """The ids [B*T] and the rows that `pack_rows` was given."""
    ids, offsets, visible = table[..., 0], table[..., 1], table[..., 2:]
    rows = Rows(order.slots, order.lengths, offsets, visible.bool())
    rows.extent = order.extent
    return ids.flatten(), rows
