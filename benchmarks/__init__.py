"""The speed of fastrnn and of its peers: `python -m benchmarks`."""
