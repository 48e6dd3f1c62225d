"""How to make a layer of each kind, and small inputs for it."""

import torch
from cases import give, take

import fastrnn
from fastrnn.reference import CELLS

DOUBLE = torch.float64
I, H, T, B = 5, 8, 6, 4

# By name: how to make it, and its cell. Those that torch.nn does not have, and those that it has.
LAYERS = {
    "PeepholeLSTM": (fastrnn.PeepholeLSTM, {}, "peephole_lstm"),
    "PeepholeLSTM-proj": (fastrnn.PeepholeLSTM, {"proj_size": 3}, "peephole_lstm"),
    "IndRNN-relu": (fastrnn.IndRNN, {}, "indrnn_relu"),
    "IndRNN-tanh": (fastrnn.IndRNN, {"nonlinearity": "tanh"}, "indrnn_tanh"),
    "LayerNormLSTM": (fastrnn.LayerNormLSTM, {}, "layer_norm_lstm"),
    "LayerNormGRU": (fastrnn.LayerNormGRU, {}, "layer_norm_gru"),
    "LiGRU": (fastrnn.LiGRU, {"normalization": None}, "ligru"),
    "LiGRU-layernorm": (fastrnn.LiGRU, {"normalization": "layernorm"}, "ligru"),
    "LiGRU-batchnorm": (fastrnn.LiGRU, {}, "ligru"),
    "sLSTM": (fastrnn.sLSTM, {}, "slstm"),
    "sLSTM-heads": (fastrnn.sLSTM, {"num_heads": 4}, "slstm"),
    "GRU-before": (fastrnn.GRU, {"reset_after": False}, "gru_reset_before"),
    "RNN-sigmoid": (fastrnn.RNN, {"nonlinearity": "sigmoid"}, "rnn_sigmoid"),
    "RNN-identity": (fastrnn.RNN, {"nonlinearity": "identity"}, "rnn_identity"),
}


TORCH_LAYERS = {
    "LSTM": (fastrnn.LSTM, {}, "lstm"),
    "LSTM-proj": (fastrnn.LSTM, {"proj_size": 3}, "lstm"),
    "GRU": (fastrnn.GRU, {}, "gru"),
    "RNN-tanh": (fastrnn.RNN, {}, "rnn_tanh"),
    "RNN-relu": (fastrnn.RNN, {"nonlinearity": "relu"}, "rnn_relu"),
}
EVERY_LAYER = {**TORCH_LAYERS, **LAYERS}


def make(name, input_size=I, hidden_size=H, **options):
    kind, own, _ = EVERY_LAYER[name]
    torch.manual_seed(3)
    layer = kind(input_size, hidden_size, **({"dtype": DOUBLE} | own | options))
    with torch.no_grad():  # so that no parameter has a value that hides a mistake
        for parameter in layer.parameters():
            parameter.add_(0.28 * hidden_size**-0.5 * torch.randn_like(parameter))
    return layer


def draw(*shape, seed=5, dtype=DOUBLE):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE).to(dtype)


def draw_states(name, layer, B=B, dtype=DOUBLE):
    """An hx of the layer, each state by itself."""
    info = CELLS[EVERY_LAYER[name][2]].info
    LD = layer.num_layers * (1 + layer.bidirectional)
    widths = layer.proj_size or H, *[H] * (len(info.states) - 1)
    states = [0.5 * draw(LD, B, width, seed=30 + k, dtype=dtype) for k, width in enumerate(widths)]
    if len(states) == 4:
        states[2] = states[2].abs() + 0.5  # n of an sLSTM
    return states


def run(layer, x, hx=None, **kwargs):
    """[output, states…]"""
    output, states, *_ = layer(x, *([] if hx is None else [give(hx)]), **kwargs)
    return [output, *take(states)]
