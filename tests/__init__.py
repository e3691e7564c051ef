"""The tests, in the rooms of what they test."""

import os

# Worker processes share the CPUs: with threads for all of them in each, they would wait for each
# other. Set before anything else is imported, because libraries read it when they are loaded.
if _n_workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    _n_threads = str(max(1, (os.cpu_count() or 1) // _n_workers))
    for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TF_NUM_INTRAOP_THREADS"):
        os.environ.setdefault(_variable, _n_threads)
