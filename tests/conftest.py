"""One deterministic profile for all property tests: the same examples on every machine.

One thread each: tests run side by side, and small models are slower on two threads that wait for each other.
"""

import torch
from hypothesis import settings

settings.register_profile("deterministic", derandomize=True, deadline=None, max_examples=60, database=None)
settings.load_profile("deterministic")

torch.set_num_threads(1)
