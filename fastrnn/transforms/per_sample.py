"""Gradients of the weights for each sample of a batch, for torch.nn.utils._per_sample_grad.

`call_for_per_sample_grads` calls a module with ExpandedWeights as its weights. fastrnn's functions then call
operators of torch.ops, and torch passes these calls on to the functions here. The forward computes the whole
batch. The backward runs once for each sample and puts the gradients of the weights into `grad_sample`, as
torch does. As with torch.nn, samples of packed sequences are in the order in which they are packed.
"""

from types import SimpleNamespace

import torch
from torch.autograd.function import once_differentiable

from ..late import when_imported
from ..sequences import Options, run_each_layer, run_layer


class _PerSample(torch.autograd.Function):
    """One layer or one step, `run(x, batch_sizes, hx, weights)`, with ExpandedWeights among its weights.

    x: `[T, B, I]`, packed `[R, I]` with batch_sizes, or one step `[B, I]`
    """

    @staticmethod
    def forward(ctx, run, batch_sizes, num_states, x, *rest):
        hx, weights = rest[:num_states], rest[num_states:]
        ctx.dim = 0 if batch_sizes is None and x.dim() == 2 else 1  # of the samples, in states too
        ctx.B = x.shape[ctx.dim] if batch_sizes is None else int(batch_sizes[0])
        plain = [_unpack(weight, ctx.B, batch_sizes is not None) for weight in weights]
        ctx.run, ctx.batch_sizes, ctx.num_states, ctx.weights = run, batch_sizes, num_states, weights
        ctx.save_for_backward(x, *hx, *plain)
        kind = x.device.type
        dtype, enabled = torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)
        ctx.autocast = torch.autocast(kind, dtype, enabled, cache_enabled=False)
        return tuple(run(x, batch_sizes, list(hx), plain))

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        from torch.nn.utils._expanded_weights.expanded_weights_utils import set_grad_sample_if_exists

        wanted, n = ctx.needs_input_grad[3:], 1 + ctx.num_states
        x, *hx = ctx.saved_tensors[:n]
        weights = ctx.saved_tensors[n:]

        def differentiate(x, hx, grads):  # of one sample
            arguments = [x, *hx, *weights]

            def run(*chosen):
                given = iter(chosen)
                every = [next(given) if w else a for w, a in zip(wanted, arguments, strict=True)]
                return tuple(ctx.run(every[0], None, every[1:n], every[n:]))

            return torch.func.vjp(run, *(a for w, a in zip(wanted, arguments, strict=True) if w))[1](grads)

        results = [torch.empty_like(t) for t in (x, *hx)] + [w.new_empty(ctx.B, *w.shape) for w in weights]
        every_dim = [ctx.dim] * n + [0] * len(weights)
        dims = tuple(dim for w, dim in zip(wanted, every_dim, strict=True) if w)
        # One torch.vmap takes all samples of one length.
        if ctx.batch_sizes is not None:
            groups = _groups(ctx.batch_sizes, x.device)
        else:
            groups = [(..., ...)] if ctx.B else []
        for rows, samples in groups:
            states = slice(None), samples
            of_hx, of_grads = [h[states] for h in hx], (grads[0][rows], *(g[states] for g in grads[1:]))
            with ctx.autocast:
                found = torch.func.vmap(differentiate, ctx.dim, dims)(x[rows], of_hx, of_grads)
            each = iter(found)
            places = [rows, *[states] * len(hx), *[samples] * len(weights)]
            for w, result, place in zip(wanted, results, places, strict=True):
                if w:
                    result[place] = next(each)

        for weight, result in zip(ctx.weights, results[n:], strict=True):
            set_grad_sample_if_exists(weight, lambda _, result=result: result)
        given = (result if w else None for w, result in zip(wanted[:n], results, strict=False))
        return None, None, None, *given, *[None] * len(weights)


def _unpack(weight, B, packed):
    """The tensor that an ExpandedWeight holds; any other weight as it is."""
    if not hasattr(weight, "orig_weight"):
        return weight
    size = weight.batch_size
    if B != size and not (packed and B < size):
        raise RuntimeError(
            "Expected ExpandedWeights to have batch size matching input but got "
            f"input batch size of {B} with ExpandedWeight of batch size {size}"
        )
    return weight.orig_weight


def _groups(batch_sizes, device):
    """For each length, the longest first: the rows `[T, n]` of its n packed samples, and their slice."""
    start, sizes = batch_sizes.cumsum(0) - batch_sizes, batch_sizes.tolist()
    ends = sorted(set(sizes))
    for first, end in zip([0, *ends], ends, strict=False):
        T = sum(size >= end for size in sizes)
        yield (start[:T].unsqueeze(1) + torch.arange(first, end)).to(device), slice(first, end)


def _run_rnn(rnn, input, batch_sizes, hx, weights, *options):
    """The operator fastrnn::rnn."""
    options = Options(*options)
    batch_first, options = options.batch_first, options._replace(batch_first=False)
    if batch_sizes is None and input.dim() == 2:
        states = [h.unsqueeze(1) for h in hx]
        y, *last = rnn(input.unsqueeze(1), None, states, weights, *options)
        return [t.squeeze(1) for t in (y, *last)]
    x = input.transpose(0, 1) if batch_first and batch_sizes is None else input
    if options.num_layers == 1:
        options = options._replace(dropout=0.0, training=False)

        def run(x, batch_sizes, hx, weights):
            return rnn(x, batch_sizes, hx, weights, *options)

        y, *last = _PerSample.apply(run, batch_sizes, len(hx), x, *hx, *weights)
    else:
        every = [results for _, results in run_each_layer(x, batch_sizes, hx, weights, options, run_layer)]
        y = every[-1][0]
        last = [torch.cat(states) for states in zip(*(states for _, *states in every), strict=True)]
    return [y.transpose(0, 1) if batch_first and batch_sizes is None else y, *last]


def _run_cell(step, input, hx, weights, cell):
    """The operator fastrnn::cell."""
    if input.dim() == 1:
        return [t.squeeze(0) for t in step(input.unsqueeze(0), [h.unsqueeze(0) for h in hx], weights, cell)]

    def run(x, _, hx, weights):
        return step(x, hx, weights, cell)

    return list(_PerSample.apply(run, None, len(hx), input, *hx, *weights))


def register() -> None:
    """Register both operators. torch looks them up when a weight of a call is an ExpandedWeight."""
    from torch.nn.utils._expanded_weights.expanded_weights_impl import ExpandedWeight

    def handle(run):
        def apply(names, op, *args):  # the names of the last arguments
            split = len(args) - len(names)
            return run(op, *args[:split], **dict(zip(names, args[split:], strict=True)))

        return SimpleNamespace(apply=apply)

    ExpandedWeight.handled_functions[torch.ops.fastrnn.rnn.default] = handle(_run_rnn)
    ExpandedWeight.handled_functions[torch.ops.fastrnn.cell.default] = handle(_run_cell)


when_imported("torch.nn.utils._expanded_weights.expanded_weights_impl", register)
