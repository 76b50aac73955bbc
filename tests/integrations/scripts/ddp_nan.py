"""DDP on two gloo processes: one sample of one batch of rank 1 is NaN."""

import math

import torch
import torch.distributed as dist

dist.init_process_group("gloo")
rank = dist.get_rank()
torch.manual_seed(0)
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
for step in range(20):
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(10 * step + rank))
    if step == 7 and rank == 1:
        x[2] = math.nan
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()
print(f"FINITE {all(bool(p.isfinite().all()) for p in model.parameters())}", flush=True)
dist.destroy_process_group()
