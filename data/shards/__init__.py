"""The archive: index, shards, frames as Blosc2 buffers, and what an archive says of itself."""
