"""Read and write bytes in a folder or an object store, with retries, a cache and no secret in any message."""
