"""Deliver the planned windows as batches: read ahead, verify, decode, cut."""
