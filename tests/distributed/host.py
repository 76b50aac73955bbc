"""What one of two machines runs: DDP under the guard, with a NaN on the other machine's rank."""

import json
import math
import sys

import torch
import torch.distributed as dist

import steadygrad as sg

dist.init_process_group("gloo")  # from RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT
rank = dist.get_rank()
torch.manual_seed(0)
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
with sg.watch(model, optimizer, runs=sys.argv[1], name="hosts") as run:
    for step in range(20):
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(10 * step + rank))
        if step == 7 and rank == 1:
            x[2] = math.nan
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
found = {
    "actions": [(a.step, a.action, a.reason) for a in run.actions],
    "notes": list(run.close().notes),
    "run": run.run_dir.name,
    "weights": torch.cat([p.flatten() for p in model.parameters()]).tolist(),
}
with open(f"{sys.argv[1]}.json", "w") as file:
    json.dump(found, file)
dist.barrier()
dist.destroy_process_group()
