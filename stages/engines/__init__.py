"""Who computes the shards: processes on this machine, or the workers of a Dask cluster. All store the same bytes."""
