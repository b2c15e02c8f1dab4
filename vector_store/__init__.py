"""The reference memory: points in a Qdrant collection, found as the nearest neighbours of a query.

One protocol (Qdrant's gRPC, but for restoring a server's snapshot) and two kinds of server: a local one over the embedded
engine, or a Qdrant cluster. Knows points, vectors and neighbours; runs no teacher and no student, and imports no
tensors.
"""
