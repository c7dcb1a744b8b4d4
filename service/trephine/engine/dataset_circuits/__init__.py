"""Circuits over datasets: effects of nodes, selection, stability, faithfulness, clusters of contexts."""
