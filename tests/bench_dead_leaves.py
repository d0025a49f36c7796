"""How many dead leaves pictures one core makes in a second: `python tests/bench_dead_leaves.py`."""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from common.datasets.dead_leaves import dead_leaves

COUNT = 200
dead_leaves(0)
start = time.process_time()
for seed in range(COUNT):
    dead_leaves(seed)
print(f"{COUNT / (time.process_time() - start):.0f} pictures a second on one core")
