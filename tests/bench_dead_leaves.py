"""How many dead leaves images one core generates in a second: `python -m tests.bench_dead_leaves`."""

import time

from common.datasets.dead_leaves import dead_leaves

COUNT = 200
dead_leaves(0)
start = time.process_time()
for seed in range(COUNT):
    dead_leaves(seed)
print(f"{COUNT / (time.process_time() - start):.0f} images a second on one core")
