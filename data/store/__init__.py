"""Read and write bytes in a folder or an object store, with retries, deadlines, a cache and no secret in any message."""
