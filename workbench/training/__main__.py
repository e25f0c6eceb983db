"""The process that `launch` starts: `python -m workbench.training FOLDER` trains what the folder holds.

Under `torch.distributed.run` it is one of several, which train together.
"""

import os
import sys
import traceback

from workbench.training.launching import interrupt_stops
from workbench.training.run import Run

if __name__ == "__main__":
    run = Run(sys.argv[1])
    if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) and run.status["state"] == "failed":
        sys.exit(1)                                                     # of what would happen again
    with interrupt_stops(run):
        from workbench.training.ranks import join, started_together
        from workbench.training.trainer import FolderInUse
        try:
            run.train(**({"ranks": join()} if started_together() else {}))
        except FolderInUse as error:
            sys.exit(str(error))
        except Exception:                                               # the first tells it in status.json and log.txt
            if os.environ.get("RANK", "0") != "0":
                traceback.print_exc()
            sys.exit(1)
