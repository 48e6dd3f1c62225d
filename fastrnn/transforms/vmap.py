"""torch.vmap over the operators of fastrnn.

If only sequences are mapped, the mapped dimension becomes part of the batch, and the kernels run once. If
weights are mapped, or if gradients of weights are wanted for each example, the kernels run once for each
example.
"""

import torch
from torch import Tensor

from ..cells import CELLS
from ..sequences import unwrap

_ops = torch.ops.fastrnn


class _Batch:
    """Where the batch is in the tensors of a call, and how the batches of N examples become one.

    A time-major or packed layer has the rows of a step side by side: the N rows of one sequence become
    neighbours. A batch-major layer has the rows of a sequence side by side: the N batches follow each other.
    So nothing that a layer saves for its backward moves in memory.
    """

    def __init__(self, N, x, x_dim, batch_sizes, sizes_dim, cell, batch_first, zoned):
        if sizes_dim is not None:
            raise ValueError("batch_sizes: vmap cannot map over the lengths of packed sequences")
        flat = x.dim() - (x_dim is not None) == 2
        step = flat and batch_sizes is None
        self.N = N
        self.outer = batch_first and not flat
        rows, states = (0 if flat or self.outer else 1), (0 if step else 1)
        num_states, saves_gates = len(CELLS[cell].states), CELLS[cell].saved > 0
        saves_states = zoned and (num_states > 1 or not saves_gates)  # as they were before zoneout
        self.x, self.states = rows, states
        self.results = [rows, *[states] * (num_states - step)]
        self.saved = [*[1] * (saves_gates + (num_states > 1) + saves_states), rows]
        self.sizes = batch_sizes
        if batch_sizes is not None:
            # A level of torch.func wraps the product. Without the levels, that is with their dispatch keys
            # excluded, torch 2.11 fails under a TorchDispatchMode.
            self.sizes = unwrap("batch_sizes", batch_sizes * N)

    def fold(self, tensor, mapped, dim):
        """`tensor` with all batches in dimension `dim`. `mapped`: its mapped dimension, or None."""
        if tensor is None:
            return None
        to = dim if self.outer else dim + 1
        if mapped is None:
            tensor = tensor.unsqueeze(to).expand(*tensor.shape[:to], self.N, *tensor.shape[to:])
        else:
            tensor = tensor.movedim(mapped, to)
        return tensor.flatten(dim, dim + 1)

    def fold_all(self, tensors, mapped, dims):
        return [self.fold(*args) for args in zip(tensors, mapped, dims, strict=False)]

    def unfold_all(self, tensors, dims):
        """The inverse of `fold`, and the mapped dimension of each result."""
        dims = dims[: len(tensors)]
        split = []
        for t, dim in zip(tensors, dims, strict=True):
            n = t.shape[dim] // self.N
            split.append(t.unflatten(dim, (self.N, n) if self.outer else (n, self.N)))
        return split, [dim if self.outer else dim + 1 for dim in dims]


def _each(N, in_dims, call, *lists):
    """The stacked results of call(*lists) for each of the N examples, and their mapped dimensions."""

    def select(item, dim, n):
        if isinstance(item, (list, tuple)):
            return [select(i, d, n) for i, d in zip(item, dim, strict=True)]
        return item.select(dim, n) if isinstance(item, Tensor) and dim is not None else item

    results = [call(*map(select, lists, in_dims, [n] * len(lists))) for n in range(N)]
    return [torch.stack(alike) for alike in zip(*results, strict=True)], [0] * len(results[0])


def _map_forward(op):
    """The rule of fastrnn::layer and of fastrnn::layer_forward."""

    def rule(
        info,
        in_dims,
        x,
        batch_sizes,
        hx,
        weights,
        cell,
        bidirectional,
        batch_first,
        flag=False,
        mask=None,
        seed=None,
        zoneout=(),
        resets=None,
    ):
        x_dim, sizes_dim, hx_dims, weight_dims = in_dims[:4]
        mask_dim, seed_dim, _, resets_dim = (*in_dims[8:12], *[None] * 4)[:4]
        batch = _Batch(info.batch_size, x, x_dim, batch_sizes, sizes_dim, cell, batch_first, bool(zoneout))
        rest = (cell, bidirectional, batch_first, flag)
        if any(dim is not None for dim in (*weight_dims, seed_dim)):

            def call(x, batch_sizes, hx, weights, mask, seed, resets):
                return op(x, batch_sizes, hx, weights, *rest, mask, seed, zoneout, resets)

            dims = (*in_dims[:4], mask_dim, seed_dim, resets_dim)
            return _each(batch.N, dims, call, x, batch_sizes, hx, weights, mask, seed, resets)
        hx = batch.fold_all(hx, hx_dims, [batch.states] * len(hx))
        noise = batch.fold(mask, mask_dim, 1), seed, zoneout
        resets = batch.fold(resets, resets_dim, batch.x)
        results = op(batch.fold(x, x_dim, batch.x), batch.sizes, hx, weights, *rest, *noise, resets)
        return batch.unfold_all(results, batch.results + batch.saved)

    return rule


def _map_backward(
    info,
    in_dims,
    grads,
    x,
    batch_sizes,
    hx,
    weights,
    cell,
    bidirectional,
    batch_first,
    saved,
    wanted,
    mask=None,
    seed=None,
    zoneout=(),
    resets=None,
):
    grad_dims, x_dim, sizes_dim, hx_dims, weight_dims, _, _, _, saved_dims, _, *noise_dims = in_dims
    mask_dim, seed_dim, _, resets_dim = (*noise_dims, *[None] * 4)[:4]
    batch = _Batch(info.batch_size, x, x_dim, batch_sizes, sizes_dim, cell, batch_first, bool(zoneout))

    def call(grads, x, batch_sizes, hx, weights, saved, mask, seed, resets):
        rest = (cell, bidirectional, batch_first, saved, wanted, mask, seed, zoneout, resets)
        return _ops.layer_backward(grads, x, batch_sizes, hx, weights, *rest)

    if any(dim is not None for dim in (*weight_dims, seed_dim)) or any(wanted[1 + len(hx) :]):
        if zoneout and seed is not None and seed_dim is None:
            raise NotImplementedError(
                "zoneout: vmap of gradients of weights for each example has randomness='different' only"
            )
        dims = (*in_dims[:5], saved_dims, mask_dim, seed_dim, resets_dim)
        return _each(batch.N, dims, call, grads, x, batch_sizes, hx, weights, saved, mask, seed, resets)
    results = call(
        batch.fold_all(grads, grad_dims, batch.results),
        batch.fold(x, x_dim, batch.x),
        batch.sizes,
        batch.fold_all(hx, hx_dims, [batch.states] * len(hx)),
        weights,
        batch.fold_all(saved, saved_dims, batch.saved),
        batch.fold(mask, mask_dim, 1),
        seed,
        batch.fold(resets, resets_dim, batch.x),
    )
    return batch.unfold_all(results, [batch.x] * wanted[0] + [batch.states] * len(hx))


def _map_frozen_rnn(
    info,
    in_dims,
    x,
    batch_sizes,
    hx,
    packed,
    cell,
    dtype,
    weights,
    input_size,
    hidden_size,
    proj_size,
    num_layers,
    bidirectional,
    batch_first,
    zoneout=(),
    resets=None,
    all_states=False,
):
    x_dim, sizes_dim, hx_dims, packed_dims = in_dims[:4]
    resets_dim = in_dims[14] if len(in_dims) > 14 else None
    sizes = input_size, hidden_size, proj_size, num_layers

    def call(x, batch_sizes, hx, packed, resets):
        options = cell, dtype, weights, *sizes, bidirectional, batch_first, zoneout, resets, all_states
        return _ops.frozen_rnn(x, batch_sizes, hx, packed, *options)

    if any(dim is not None for dim in packed_dims):
        dims = x_dim, sizes_dim, hx_dims, packed_dims, resets_dim
        return _each(info.batch_size, dims, call, x, batch_sizes, hx, packed, resets)
    unbatched = batch_sizes is None and x.dim() - (x_dim is not None) == 2
    if unbatched:  # a batch of one
        x, x_dim = _insert(x, x_dim, 0 if batch_first else 1)
        hx, hx_dims = _insert_all(hx, hx_dims, 1)
        resets, resets_dim = _insert(resets, resets_dim, 0 if batch_first else 1)
    batch = _Batch(info.batch_size, x, x_dim, batch_sizes, sizes_dim, cell, batch_first, False)
    hx = batch.fold_all(hx, hx_dims, [batch.states] * len(hx))
    resets = batch.fold(resets, resets_dim, batch.x)
    results = call(batch.fold(x, x_dim, batch.x), batch.sizes, hx, packed, resets)
    of_batch = list(batch.results)
    each = [batch.x, 1] if len(CELLS[cell].states) > 1 else [batch.x]  # of each layer, with all_states
    split, mapped = batch.unfold_all(results, of_batch + each * num_layers)
    if unbatched:
        for k in (*range(len(of_batch)), *range(len(of_batch), len(split), len(each))):
            dim = mapped[k] + 1 if batch.outer else mapped[k] - 1
            split[k], mapped[k] = split[k].squeeze(dim), min(dim, mapped[k])
    return split, mapped


def _insert(tensor, mapped, dim):
    """`tensor` with one more dimension of size 1 at `dim` of an example, and its mapped dimension, which
    comes first."""
    if tensor is None:
        return None, None
    if mapped is None:
        return tensor.unsqueeze(dim), None
    return tensor.movedim(mapped, 0).unsqueeze(dim + 1), 0


def _insert_all(tensors, mapped, dim):
    """The same of several."""
    every = [_insert(tensor, m, dim) for tensor, m in zip(tensors, mapped, strict=True)]
    return [tensor for tensor, _ in every], [m for _, m in every]


def _map_frozen_cell(info, in_dims, x, hx, packed, cell, *options):
    x_dim, hx_dims, packed_dim = in_dims[:3]

    def call(x, hx, packed):
        return _ops.frozen_cell(x, hx, packed, cell, *options)

    if packed_dim is not None:
        return _each(info.batch_size, in_dims[:3], call, x, hx, packed)
    one = x.dim() - (x_dim is not None) == 1
    if one:
        x, x_dim = _insert(x, x_dim, 0)
        hx, hx_dims = _insert_all(hx, hx_dims, 0)
    batch = _Batch(info.batch_size, x, x_dim, None, None, cell, False, False)
    hx = batch.fold_all(hx, hx_dims, [0] * len(hx))
    results = call(batch.fold(x, x_dim, 0), hx, packed)
    split, mapped = batch.unfold_all(results, [0] * len(results))
    return ([s.squeeze(0) for s in split], [0] * len(split)) if one else (split, mapped)


def _map_frozen_product(info, in_dims, x, packed, *options):
    x_dim, packed_dim = in_dims[:2]

    def call(x, packed):
        return [_ops.frozen_product(x, packed, *options)]

    if packed_dim is not None:
        (y,), (dim,) = _each(info.batch_size, in_dims[:2], call, x, packed)
        return y, dim
    return call(x.movedim(x_dim, 0), packed)[0], 0


def register():
    """Register the rules. The operators fastrnn::rnn and fastrnn::cell are composed of these operators."""
    torch.library.register_vmap("fastrnn::frozen_rnn", _map_frozen_rnn)
    torch.library.register_vmap("fastrnn::frozen_cell", _map_frozen_cell)
    torch.library.register_vmap("fastrnn::frozen_product", _map_frozen_product)
    torch.library.register_vmap("fastrnn::layer", _map_forward(_ops.layer.default))
    torch.library.register_vmap("fastrnn::layer_forward", _map_forward(_ops.layer_forward.default))
    torch.library.register_vmap("fastrnn::layer_backward", _map_backward)


register()
