"""Is what deploys this project well-formed? Every manifest, image, rule and dashboard against its schema and this project's rules.

Part of `make check`; needs the development extra, no cluster and no network. Knows nothing of models and memories.
"""
