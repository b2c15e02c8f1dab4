"""The service that `jobs/serve.py` starts: what a replica is made of, and what runs in Ray's proxy (`proxy`)."""
