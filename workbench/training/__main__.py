"""The process that `launch` starts: `python -m workbench.training FOLDER` trains what the folder holds."""

import sys

from workbench.training.launching import interrupt_stops
from workbench.training.run import Run

if __name__ == "__main__":
    run = Run(sys.argv[1])
    with interrupt_stops(run):
        from workbench.training.trainer import FolderInUse
        try:
            run.train()
        except FolderInUse as error:
            sys.exit(str(error))
        except Exception:                                               # told in status.json and log.txt
            sys.exit(1)
