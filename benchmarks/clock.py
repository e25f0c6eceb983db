"""Side by side in one process: A, B, A, B …, CPU time, medians. Ratios carry over to other machines; times do not."""

import os
import platform
import time
from collections.abc import Callable
from statistics import median

import torch


def side_by_side(cases: dict[str, Callable[[], object]], repeats: int = 7, turn: float = 0.1) -> dict[str, float]:
    """Median CPU seconds of a call of each case. Each takes turns of at least `turn` seconds, once warm."""
    for case in cases.values():
        case()
    spent: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(repeats):
        for name, case in cases.items():
            calls, start = 0, time.process_time()
            while (now := time.process_time()) - start < turn:
                case()
                calls += 1
            spent[name].append((now - start) / calls)
    return {name: median(values) for name, values in spent.items()}


def tell(title: str, cases: dict[str, Callable[[], object]], unit: str = "call", number: int = 1,
         repeats: int = 7) -> dict[str, float]:
    """Print every case with its ratio to the first; `number` of `unit` are done by one call. Returns the ratios."""
    spent = side_by_side(cases, repeats)
    first = next(iter(spent.values()))
    print(f"\n{title}")
    for name, seconds in spent.items():
        rate = f"{number / seconds:14,.0f} {unit}s/s" if number > 1 else ""
        print(f"  {name:44s} {1e3 * seconds:10.2f} ms {rate} {first / seconds:8.2f}x")
    return {name: first / seconds for name, seconds in spent.items()}


def machine() -> str:
    """What the numbers were measured on."""
    return (f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__} on {torch.get_num_threads()} "
            f"thread(s), Python {platform.python_version()}; medians of CPU time, alternated in one process")
