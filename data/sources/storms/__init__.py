"""Make rain that no radar saw: fields whose scales live for given times, cells with life cycles, and the wind."""
