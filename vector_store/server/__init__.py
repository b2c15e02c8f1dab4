"""The embedded server: Qdrant's gRPC API over the real Qdrant engine, for one machine and many processes.

Nothing outside this folder imports the engine; users reach it through the same client as a Qdrant cluster.
"""
