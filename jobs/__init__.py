"""The verbs: ingest, distill, evaluate, serve, and demo, which runs them all.

Jobs compose the two libraries on Ray. Each is a script for `ray job submit -- python jobs/NAME.py [RUN.yaml] [key=value ...]`,
and runs without a cluster as plain `python jobs/NAME.py`.
"""
