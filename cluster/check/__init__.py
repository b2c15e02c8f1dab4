"""Is what deploys this project well-formed? Manifests, image, rules and dashboards against schemas and this project's rules.

Part of `make check`; needs the development extra, no cluster and no network. Knows nothing of models and memories.
"""
