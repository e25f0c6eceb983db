"""`make bench`: every comparison, on one thread. `python -m benchmarks poyo` runs one."""

import sys
from importlib import import_module

import torch

from benchmarks.clock import machine

ALL = ("sampling", "sessions", "binning", "poyo", "mixed", "streaming", "grid", "generate", "raster", "watched")


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(machine())
    for name in sys.argv[1:] or ALL:
        import_module(f"benchmarks.{name}").main()
