"""`torchrun ... -m tests.launchers.plain_worker RUN`: a worker that nobody but torchrun knows of."""

import os
import socket
import sys
import time

import torch

from dist_trainer.adapters import distributed
from dist_trainer.run_folder import RunFolder


def main() -> None:
    run = RunFolder.open(sys.argv[1])
    owner = {"pid": os.getpid(), "host": socket.gethostname(), "time": time.time()}
    group = distributed.join("cpu", timeout_s=30, take_fence=lambda: run.new_fence(owner))
    for step in range(3):
        total = int(group.sum_over_ranks(torch.tensor([group.rank + step])))
    (run.path / f"rank-{group.rank}-of-{group.world_size}").write_text(f"{group.fence} {total}")
    group.leave()


if __name__ == "__main__":
    main()
