"""Exports as GGUF files: converted, reloaded by stock transformers, held against the quantised parent."""
