"""Contrast over two processes is contrast over one that has both their rows, gradients and all."""

import os

import torch
import torch.multiprocessing as mp

from workbench.losses import clip_loss
from workbench.nn.across import across_processes


def work(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    rows = torch.load(f"{folder}/rows.pt")
    a, b = (each[4 * rank:4 * rank + 4].clone().requires_grad_() for each in rows[:2])
    loss = clip_loss(across_processes(a), across_processes(b), 0.1, across_processes(rows[2][4 * rank:4 * rank + 4]))
    loss.backward()
    torch.save([loss.detach(), a.grad, b.grad], f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()
    os._exit(0)                                                         # not by way of what pytorch#179291 tells of


def test_two_processes_are_one_batch(tmp_path):
    torch.manual_seed(0)
    a, b, groups = torch.randn(8, 5), torch.randn(8, 5), torch.tensor([0, 1, 2, 3, 0, 4, 5, 6])
    torch.save([a, b, groups], tmp_path / "rows.pt")
    mp.spawn(work, (str(tmp_path),), nprocs=2)
    a.requires_grad_(), b.requires_grad_()
    loss = clip_loss(a, b, 0.1, groups)
    loss.backward()
    told = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    assert all(torch.allclose(each[0], loss.detach()) for each in told)
    for found, grad in ((1, a.grad), (2, b.grad)):                      # each process has the gradient of both losses
        torch.testing.assert_close(torch.cat([each[found] for each in told]), 2 * grad)


def test_alone_the_rows_are_as_they_are():
    rows = torch.randn(3, 2)
    assert across_processes(rows) is rows
