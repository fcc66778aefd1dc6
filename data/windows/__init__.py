"""Which windows a run reads, in which order, in which batches: pure functions of index, selection, seed and step."""
