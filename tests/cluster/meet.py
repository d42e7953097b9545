"""A task of a job that sums its rank with those of the other nodes, over gloo."""

import os

import torch
from torch import distributed


def main() -> None:
    rank, size = int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_NTASKS"])
    address = f"tcp://n1:{20000 + int(os.environ['SLURM_JOB_ID']) % 10000}"
    distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=size)
    total = torch.tensor([rank + 1.0])
    distributed.all_reduce(total)
    os.write(1, f"{os.environ['SLURMD_NODENAME']} {total.item()}\n".encode())
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
