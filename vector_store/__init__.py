"""The reference memory: points in a Qdrant collection, found as the nearest neighbours of a query.

Its client speaks one protocol (Qdrant's gRPC, but for restoring a server's snapshot) with two kinds of server: a local one over
the embedded engine, or a Qdrant server or cluster. Knows points, vectors and neighbours; runs no teacher and no student, and
imports no torch.
"""
