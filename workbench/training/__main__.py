"""The process that `launch` starts: `python -m workbench.training FOLDER` trains what the folder holds.

Under `torch.distributed.run` it is one of several, which train together.
"""

import os
import sys
import traceback

from workbench.training.launching import interrupt_stops
from workbench.training.ranks import attempt, join, started_together
from workbench.training.run import Run

if __name__ == "__main__":
    run = Run(sys.argv[1])
    if attempt() and run.status["state"] == "failed":
        sys.exit(1)                                                     # of what would happen again
    # Several processes are told to end (SIGTERM) also where one of them died, and the next attempt has to go on.
    together = started_together()
    ranks = {"ranks": join()} if together else {}
    with interrupt_stops(run, f"STOP.{os.getpid()}" if together else "STOP") as asked:
        from workbench.training.trainer import FolderInUse
        try:
            run.train(**ranks, stop_files=(asked,))
        except FolderInUse as error:
            sys.exit(str(error))
        except Exception:                                               # the first tells it in status.json and log.txt
            if os.environ.get("RANK", "0") != "0":
                traceback.print_exc()
            sys.exit(1)
