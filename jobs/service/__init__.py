"""The service that `jobs/serve.py` starts: what a replica is made of."""
