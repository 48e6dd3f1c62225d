"""What torch's tools look up to transform calls of fastrnn: torch.vmap, gradients of each sample, the counter
of floating-point operations, torch.fx and torch.ao.quantization."""
