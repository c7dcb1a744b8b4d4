"""What real ablations say about a circuit."""
