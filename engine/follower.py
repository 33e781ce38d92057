"""Any rank but 0 of a split model: `python -m engine.follower FD`, started by `ranks.py`.

Holds a share of the heads, with their keys and values, and repeats what rank 0 does to its own. It
picks nothing and knows no request. It ends when rank 0 is gone, however that came about.
"""

from __future__ import annotations

import ctypes
import logging
import signal
import socket
import sys

import torch
import torch.distributed as dist
from transformers.utils.logging import disable_progress_bar

from .logs import configure_as_told
from .orders import Allocate, CopyPrefix, Forward, Join, Order, Scrub
from .pretrained import attention_modules, read_config
from .ranks import GOT_SO_FAR, join, share_threads, unpack_rows
from .sharding import load_share, share_shape
from .slots import KeyValueSlots
from .wire import Connection, order_decoder

logger = logging.getLogger(__name__)

PR_SET_PDEATHSIG = 1  # of Linux' prctl


def main() -> int:
    """Follow rank 0 until it is gone; the exit status."""
    configure_as_told()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # rank 0 decides when to stop
    disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    line = socket.socket(fileno=int(sys.argv[1]))
    try:
        follow(line)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return 0
    except Exception:
        logger.exception("a rank of the model failed")
    return 1


def follow(line: socket.socket) -> None:
    """Join, load, and obey. Raises `EOFError` when rank 0 is gone."""
    connection = Connection(line, order_decoder())
    line.sendall(GOT_SO_FAR)
    [first] = connection.receive(block=True)
    if not isinstance(first, Join):
        raise TypeError(f"the first order must be Join, not {type(first).__name__}")
    if first.ends_with_starter:
        end_with_starter()
    follower = Follower(first)
    line.sendall(GOT_SO_FAR)
    with torch.inference_mode():
        while True:
            for order in connection.receive(block=True):
                follower.obey(order)


def end_with_starter() -> None:
    """Let the kernel kill this process, hung or not, when the thread that started it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Follower:
    """A share of the model without its head, and its slots."""

    slots: KeyValueSlots

    def __init__(self, order: Join) -> None:
        config = order.config
        share_threads(config)
        join(config, order.rank, order.port)
        model = load_share(config, read_config(config), order.rank)
        self.modules = attention_modules(model)
        self.shape = share_shape(model, config.tensor_parallel_size)
        self.like = next(model.parameters()).detach()
        self.decoder = model.get_decoder()  # the head is not kept
        self.limit = 0

    def obey(self, order: Order) -> None:
        """Do to this share what rank 0 does to its own."""
        match order:
            case Allocate():
                sizes = order.num_slots, order.capacity, self.shape
                self.slots = KeyValueSlots(self.modules, *sizes, like=self.like)
                self.limit = order.context_length
            case Forward():
                self._forward(order)
            case CopyPrefix():
                self.slots.copy_prefix(order.source, order.slot, order.length)
            case Scrub():
                self.slots.scrub(order.slot, order.start)
            case Join():
                raise ValueError("this rank has joined already")

    def _forward(self, order: Forward) -> None:
        size = (len(order.slots), order.count, 2 + order.count)
        table = torch.empty(size, dtype=torch.long, device=self.like.device)
        dist.broadcast(table, src=0)
        ids, rows = unpack_rows(order, table)
        self.decoder(
            input_ids=ids[None],
            position_ids=rows.position_ids(self.limit),
            use_cache=False,
            falcon_rows=rows,
        )


if __name__ == "__main__":
    sys.exit(main())
