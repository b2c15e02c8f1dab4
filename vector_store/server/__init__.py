"""The embedded server: a part of Qdrant's API over the real Qdrant engine, for many processes at once.

Outside tests and benchmarks only this folder imports the engine; users connect with the same client as to a Qdrant cluster.
"""
