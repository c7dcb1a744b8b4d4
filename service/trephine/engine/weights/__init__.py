"""Compiling interventions into weights: what each tier writes, tensor by tensor."""
