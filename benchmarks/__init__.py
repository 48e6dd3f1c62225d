"""How fast fastrnn is beside torch.nn: `python -m benchmarks`."""
