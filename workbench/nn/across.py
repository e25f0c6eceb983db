"""What all processes of a run have of something: contrast wants every other example that there is."""

import torch
from torch import Tensor, distributed


def across_processes(values: Tensor) -> Tensor:
    """The rows [B, D] of all processes, one after the other [processes × B, D]; alone, the rows as they are.

    Gradients flow back to the process that each row came from. Every process has to have as many rows.
    """
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        return values
    if not values.requires_grad:
        all_of_them = [torch.empty_like(values) for _ in range(distributed.get_world_size())]
        distributed.all_gather(all_of_them, values.contiguous())
        return torch.cat(all_of_them)
    from torch.distributed.nn.functional import all_gather

    return torch.cat(all_gather(values.contiguous()))
