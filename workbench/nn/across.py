"""What all processes of a run have of something: contrast wants every other example that there is."""

import torch
from torch import Tensor, distributed


def across_processes(values: Tensor) -> Tensor:
    """The rows [B, D] of all processes, one after the other [processes × B, D]; alone, the rows as they are.

    Gradients flow back to the process that each row came from. Every process has to have as many rows.
    """
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        return values
    return _Gathered.apply(values)


class _Gathered(torch.autograd.Function):
    # torch.distributed.nn.functional.all_gather keeps the group with the graph, past the end of the group, whose
    # threads then meet an interpreter that is going and abort the process (pytorch/pytorch#179291).
    @staticmethod
    def forward(ctx, values: Tensor) -> Tensor:
        ctx.rows = len(values)
        found = [torch.empty_like(values, memory_format=torch.contiguous_format)
                 for _ in range(distributed.get_world_size())]
        distributed.all_gather(found, values.contiguous())
        return torch.cat(found)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        grad, first = grad.clone(memory_format=torch.contiguous_format), distributed.get_rank() * ctx.rows
        distributed.all_reduce(grad)
        return grad[first:first + ctx.rows]
