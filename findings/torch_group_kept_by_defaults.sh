#!/usr/bin/env bash
# torch 2.13.0 on Linux: destroy_process_group() leaves the threads of Gloo running if a DistributedDataParallel was made.
#
# Making the first DistributedDataParallel imports torch.distributed.nn.functional, whose functions have the default argument
# group.WORLD. It is evaluated at that import, so that they keep the group which exists then until the process ends. With the
# same module imported before the group is made, the threads end with the group. Threads that are left let go of their last
# tensors late, which needs the interpreter: where it is ending meanwhile, the process is aborted ("terminate called without an
# active exception"). Nothing is aborted here: the script counts threads, in a group of one process.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
cat > "$folder/threads.py" <<'PYTHON'
import gc
import sys
from pathlib import Path

import torch
from torch import distributed, nn

if sys.argv[1] == "before":
    import torch.distributed.nn.functional


def threads():
    return sum("gloo_runloop" in path.read_text() for path in Path("/proc/self/task").glob("*/comm"))


def train():
    network = nn.parallel.DistributedDataParallel(nn.Conv2d(1, 1, 3))
    network(torch.ones(1, 1, 8, 8)).sum().backward()


store = distributed.FileStore(sys.argv[2], 1)
distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
train()
started = threads()
distributed.destroy_process_group()
gc.collect()
print(f"imported {sys.argv[1]} the group: {started} threads, {threads()} after its end")
PYTHON
"$folder/venv/bin/pip" install --quiet 'torch==2.13.0' 'numpy==2.3.5'
seen=$(for moment in after before; do "$folder/venv/bin/python" "$folder/threads.py" "$moment" "$folder/$moment"; done)
echo "$seen"
diff <(echo "$seen") - <<'SEEN'
imported after the group: 2 threads, 2 after its end
imported before the group: 2 threads, 0 after its end
SEEN
