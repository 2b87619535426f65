"""One deterministic profile for all property tests: the same examples on every machine.

One thread each, and for the processes that tests start, unless OMP_NUM_THREADS says otherwise: tests run side by
side, and small models are slower on two threads that wait for each other.
"""

import os

import torch
from hypothesis import settings

settings.register_profile("deterministic", derandomize=True, deadline=None, max_examples=60, database=None)
settings.load_profile("deterministic")

torch.set_num_threads(int(os.environ.setdefault("OMP_NUM_THREADS", "1")))
