"""The wire: messages, services and tensors that agent, coordinator and clients speak over gRPC."""
