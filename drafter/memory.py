"""Keep freed memory in the process instead of handing it back to the system.

A training step frees and takes the same large blocks again and again: logits of 64 MB, for one. By
default glibc maps each of them afresh, and the page faults cost more than the arithmetic.
"""

from __future__ import annotations

import ctypes

# Parameters of mallopt(3).
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
LARGEST = 2**31 - 1  # mallopt takes a C int


def keep_freed_memory() -> bool:
    """Tell the C library to reuse freed memory; False where it is not glibc."""
    library = ctypes.CDLL(None)
    if not (hasattr(library, "mallopt") and hasattr(library, "gnu_get_libc_version")):
        return False
    wanted = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: LARGEST, M_TOP_PAD: 64 << 20}
    return all(library.mallopt(name, value) == 1 for name, value in wanted.items())
