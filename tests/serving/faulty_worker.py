"""The engine's process with faults: a file "load" or "forward" in the folder FAULTS holds up what it names.

The first forward that finds its file takes it away and hangs for ever.
"""

import asyncio
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from rhea.serving import worker
from rhea.serving.choice import ModelChoice
from rhea.serving.limits import Bounds
from rhea.serving.local import LocalBackend

FAULTS = Path(os.environ["FAULTS"])
load = worker.load


def load_with_faults(choice: ModelChoice, bounds: Bounds) -> LocalBackend:
    while (FAULTS / "load").exists():
        time.sleep(0.01)
    backend = load(choice, bounds)
    hidden = backend.engine.model.hidden

    def stuck_hidden(*arguments: Any, **options: Any) -> Any:
        if (FAULTS / "forward").exists():
            (FAULTS / "forward").unlink()
            threading.Event().wait()
        return hidden(*arguments, **options)

    backend.engine.model.hidden = stuck_hidden  # type: ignore[method-assign]
    return backend


worker.load = load_with_faults
asyncio.run(worker.work(int(sys.argv[1])))
