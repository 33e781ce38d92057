"""The real engine process with a fault to order: `python tests/faulty_worker.py FILE FD`.

The first step that finds FILE removes it and does what it says: "raise" or "hang".
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from engine import worker
from engine.engine import Engine
from engine.messages import StepReport


def plant(file: Path) -> None:
    """Put the fault into `Engine.step`."""
    real_step = Engine.step

    def faulty_step(engine: Engine) -> StepReport:
        if file.exists():
            fault = file.read_text()
            file.unlink()
            if fault == "hang":
                time.sleep(600)
            raise RuntimeError("planted")
        return real_step(engine)

    Engine.step = faulty_step  # type: ignore[method-assign]  # that is the fault


if __name__ == "__main__":
    plant(Path(sys.argv.pop(1)))
    sys.exit(worker.main())
