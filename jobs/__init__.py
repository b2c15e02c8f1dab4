"""The verbs, such as ingest, distill, adapt, evaluate, serve and demo, and what they share.

Verbs compose the two libraries, `refbert` and `vector_store`, on Ray. Each verb is a script for `ray job submit -- python
jobs/NAME.py [RUN.yaml] [key=value ...]`, and runs without a cluster as plain `python jobs/NAME.py`.
"""

import gc

# What imports make stays: with Python's own thresholds a fifth of a process's start goes into looking for garbage among it.
gc.set_threshold(50_000, 20, 20)
