"""Check the deployment files: manifests, image, alert rules and dashboards, against schemas and this project's rules.

Part of `make check`; needs the development extra, but no cluster and no network. Knows nothing of models and memories.
"""
