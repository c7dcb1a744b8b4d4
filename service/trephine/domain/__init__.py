"""Frozen values, ports and errors. No torch, no grpc, no protobuf."""
