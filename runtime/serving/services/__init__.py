"""The gRPC services of an agent, one a file."""
