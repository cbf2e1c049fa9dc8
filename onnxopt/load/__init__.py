"""Source to graph, reference and feeder."""
