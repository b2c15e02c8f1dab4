"""The gRPC API: `refbert.proto`, and what its compiler makes of it (see jobs/service/grpc_calls.py)."""
