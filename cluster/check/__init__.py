"""Check the deployment files (Docker, Kubernetes, Ray, Qdrant, monitoring) against schemas and this project's rules.

Part of `make check`; needs the development extra, but no cluster and no network. Loads no model and opens no memory.
"""
