"""The embedded server: Qdrant's API over the real Qdrant engine, for many processes of one machine.

Only this folder imports the engine; users connect with the same client as to a Qdrant cluster.
"""
