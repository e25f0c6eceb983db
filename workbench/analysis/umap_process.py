"""The process of `workbench.analysis.projection.Umap`: a job a line on stdin, what it does on stdout.

    {"values": file, "result": file, …UMAP's parameters} → positions [P, 2] in `result` → "done", or "failed: …"

It imports little, takes a lower priority than the page, and ends with whoever started it.
"""

import json
import os
import queue
import sys
import threading
from pathlib import Path

import numpy as np

from workbench.files import replacing


def main() -> None:
    jobs: queue.SimpleQueue = queue.SimpleQueue()

    def listen() -> None:
        for line in sys.stdin:
            jobs.put(json.loads(line))
        os._exit(0)                                                     # whatever the other thread is doing

    threading.Thread(target=listen, daemon=True).start()
    if hasattr(os, "nice"):
        os.nice(5)
    from umap import UMAP

    while True:
        job = jobs.get()
        result, values = Path(job.pop("result")), np.load(job.pop("values"))
        try:
            positions = UMAP(**job, n_jobs=1, verbose=True, tqdm_kwds={"disable": True}).fit_transform(values)
            with replacing(result, durable=False) as temporary, open(temporary, "wb") as file:
                np.save(file, positions.astype(np.float32))
            print("done", flush=True)
        except Exception as error:                                      # said in the page
            print(f"failed: {error}", flush=True)


if __name__ == "__main__":
    main()
