"""Meet one other process and sum with it: `python -m rainspark.launch.doctor.collective RANK HOST PORT`.

Rank 0 takes port 0 and writes the port that it got.
"""

import socket
import sys
from collections.abc import Sequence
from datetime import timedelta


def main(words: Sequence[str]) -> None:
    """Meet the other process at rank 0's store, sum over both, leave.

    Args:
        words: Rank, host name or address of rank 0, its port; rank 0 takes a free one and prints it.
    """
    import torch
    import torch.distributed as dist

    rank, host, port = int(words[0]), words[1], int(words[2])
    # The store would try a name that leads nowhere for as long as it may.
    socket.getaddrinfo(host, port)
    limit = timedelta(seconds=60)
    store = dist.TCPStore(  # type: ignore[attr-defined]
        host, port, is_master=rank == 0, timeout=limit, wait_for_workers=False
    )
    sys.stdout.write(f"{store.port}\n")
    sys.stdout.flush()
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=limit)
    values = torch.full((1000,), float(rank + 1))
    dist.all_reduce(values)
    if not bool(values.eq(3).all()):
        raise RuntimeError(f"the sum of 1 and 2 is {values[0]}")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1:])
