"""The contract: generated code. Regenerate with `make protos`."""
