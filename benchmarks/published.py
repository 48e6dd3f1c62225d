"""Published models with recurrent layers, and what they are called with. Each imports its package when built.

The weights are random except where the package ships them: this times layers, it scores nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import Any, NamedTuple

import torch
from torch import nn


class Subject(NamedTuple):
    """A model and its calls. Each call takes the model, or a copy, and returns tensors, nested in any way."""

    module: nn.Module
    infer: Callable[[nn.Module], Any]
    train: Callable[[nn.Module], Any] | None  # the forward of a training step; None: it is for inference only


class Model(NamedTuple):
    """A published model.

    Attributes:
        package: its name for `import`, which pip takes too
        build: makes it, with seeded inputs
        given: what it is called with; "trained" if the package ships its weights
    """

    package: str
    build: Callable[[], Subject]
    given: str


def alike(module: nn.Module, *inputs: Any) -> Subject:
    """A model that is called in the same way to infer and to train."""
    return Subject(module, lambda m: m(*inputs), lambda m: m(*inputs))


def voice_encoder() -> Subject:
    from resemblyzer import VoiceEncoder

    return alike(VoiceEncoder("cpu", verbose=False), torch.rand(12, 160, 40))


def pyannote() -> Subject:
    from pyannote.audio.core.task import Problem, Resolution, Specifications
    from pyannote.audio.models.segmentation import PyanNet

    model = PyanNet(lstm={"num_layers": 4})
    model.specifications = Specifications(
        Problem.MONO_LABEL_CLASSIFICATION, Resolution.FRAME, 10.0, classes=["1", "2", "3"]
    )
    model.build()
    return alike(model, torch.randn(1, 1, 160_000))


def open_unmix() -> Subject:
    from openunmix.model import OpenUnmix

    return alike(OpenUnmix(nb_bins=2049, max_bin=1487), torch.rand(1, 2, 2049, 255))


def dprnn() -> Subject:
    from asteroid.models import DPRNNTasNet

    return alike(DPRNNTasNet(2), torch.randn(1, 8000))


def crdnn() -> Subject:
    from speechbrain.lobes.models.CRDNN import CRDNN
    from speechbrain.nnet.RNN import LSTM

    return alike(CRDNN(input_size=80, rnn_class=LSTM), torch.randn(1, 100, 80))


def metric_gan() -> Subject:
    from speechbrain.lobes.models.MetricGAN import EnhancementGenerator

    return alike(EnhancementGenerator(), torch.rand(1, 300, 257), torch.ones(1))


def deep_speech() -> Subject:
    from torchaudio.models import DeepSpeech

    return alike(DeepSpeech(n_feature=80), torch.randn(1, 1, 300, 80))


def tacotron2() -> Subject:
    from torchaudio.models import Tacotron2

    tokens, lengths = torch.randint(0, 148, (2, 40)), torch.tensor([40, 30])
    return alike(Tacotron2(), tokens, lengths, torch.randn(2, 80, 40), torch.tensor([40, 30]))


def wave_rnn() -> Subject:
    from torchaudio.models import WaveRNN

    model = WaveRNN(upsample_scales=[5, 5, 8], n_classes=512, hop_length=200)
    return alike(model, torch.randn(1, 1, 1200), torch.randn(1, 1, 128, 10))


def demucs() -> Subject:
    from torchaudio.models import hdemucs_low

    return alike(hdemucs_low(["voice", "rest"]), torch.randn(1, 2, 44_100))


def encodec() -> Subject:
    from encodec import EncodecModel

    return alike(EncodecModel.encodec_model_24khz(pretrained=False), torch.randn(1, 1, 24_000))


def easy_ocr() -> Subject:
    from easyocr.model.vgg_model import Model as Recognizer

    return alike(Recognizer(1, 256, 256, 97), torch.randn(1, 1, 64, 400), None)


def gated_graph() -> Subject:
    from torch_geometric.nn import GatedGraphConv

    return alike(GatedGraphConv(64, num_layers=6), torch.randn(500, 64), torch.randint(0, 500, (2, 2000)))


def attentive_fp() -> Subject:
    from torch_geometric.nn.models import AttentiveFP

    model = AttentiveFP(39, 200, 1, edge_dim=10, num_layers=2, num_timesteps=2)
    graph_of = torch.arange(32).repeat_interleave(25)
    edges = torch.randint(0, 25, (2, 1600)) + 25 * torch.arange(32).repeat_interleave(50)
    return alike(model, torch.randn(800, 39), edges, torch.randn(1600, 10), graph_of)


def sage() -> Subject:
    from torch_geometric.nn import GraphSAGE

    model = GraphSAGE(64, 64, num_layers=2, aggr="lstm")
    target = torch.arange(500).repeat_interleave(8)
    return alike(model, torch.randn(500, 64), torch.stack((torch.randint(0, 500, (4000,)), target)))


def recurrent_ppo() -> Subject:
    import numpy
    from gymnasium.spaces import Box, Discrete
    from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
    from sb3_contrib.common.recurrent.type_aliases import RNNStates

    policy = RecurrentActorCriticPolicy(
        Box(-numpy.ones(8, "f"), numpy.ones(8, "f")), Discrete(4), lambda _: 3e-4
    )
    zeros = torch.zeros(1, 1, 256)
    states = RNNStates((zeros, zeros), (zeros, zeros))
    step, steps = torch.randn(1, 8), torch.randn(128, 8)
    actions, starts = torch.randint(0, 4, (128,)), (torch.arange(128) % 50 == 0).float()
    return Subject(
        policy,
        lambda m: m(step, states, torch.zeros(1), deterministic=True),
        lambda m: m.evaluate_actions(steps, actions, states, starts),
    )


def lstm_module() -> Subject:
    from tensordict import TensorDict
    from torchrl.modules import LSTMModule, set_recurrent_mode

    model = LSTMModule(32, 128, in_key="x", out_key="y")
    zeros, starts = torch.zeros(16, 64, 1, 128), torch.rand(16, 64, 1) < 0.05
    given = {"x": torch.randn(16, 64, 32), "recurrent_state_h": zeros, "recurrent_state_c": zeros}
    steps = TensorDict({**given, "is_init": starts}, [16, 64])

    def call(m: nn.Module, data: TensorDict) -> Any:
        with set_recurrent_mode(data.ndim == 2):
            return m(data.clone())["y"]

    return Subject(model, lambda m: call(m, steps[0, 0]), lambda m: call(m, steps))


def flair_tagger() -> Subject:
    from flair.data import Dictionary, Sentence
    from flair.embeddings import CharacterEmbeddings, FlairEmbeddings, StackedEmbeddings
    from flair.models import LanguageModel, SequenceTagger

    letters, tags = Dictionary(), Dictionary()
    for letter in " abcdefghijklmnopqrstuvwxyz.":
        letters.add_item(letter)
    for tag in ("noun", "verb", "other"):
        tags.add_item(tag)
    language_model = LanguageModel(letters, True, hidden_size=1024, nlayers=1)
    tagger = SequenceTagger(
        StackedEmbeddings([CharacterEmbeddings(letters), FlairEmbeddings(language_model)]), tags, "pos"
    )
    words = "the layers of a published model take only a part of its time .".split()
    texts = [Sentence(" ".join(words[: 13 - n // 2])) for n in range(16)]
    for text in texts:
        for token in text:
            token.add_label("pos", "noun")

    def cleared() -> list[Sentence]:
        for text in texts:
            text.clear_embeddings()  # which it would take from the last call
        return texts

    return Subject(
        tagger,
        # What the CRF forbids scores -10,000, the rest about 0: a difference would not show beside it.
        lambda m: m(*m._prepare_tensors(cleared()))[0].clamp_min(-1),
        lambda m: m.forward_loss(cleared())[0],
    )


def stanza_tokenizer() -> Subject:
    from stanza.models.tokenization.model import Tokenizer

    given = {"feat_dim": 5, "rnn_layers": 1, "conv_res": None, "hierarchical": True, "use_mwt": False}
    given |= {"tok_noise": 0.02, "hier_invtemp": 0.5}
    model = Tokenizer(given, 100, 32, 64, dropout=0.33, feat_dropout=0.05)
    return alike(model, torch.randint(1, 100, (16, 300)), torch.rand(16, 300, 5), [300] * 16)


def stanza_letters() -> Subject:
    from stanza.models.common.char_model import CharacterLanguageModel

    given = {"char_emb_dim": 100, "char_hidden_dim": 1024, "char_num_layers": 1}
    given |= {"char_dropout": 0.05, "char_rec_dropout": 0.0}
    model = CharacterLanguageModel(given, {"char": range(200)})
    lengths = [60 - 5 * n for n in range(8)]
    return alike(model, torch.randint(0, 200, (8, 60)), lengths)


def forecaster(model: Any) -> Subject:
    """The module of a model of darts. It gets its sizes from a series, which it fits for an epoch."""
    from darts import TimeSeries
    from darts.utils.data.torch_datasets.utils import PLModuleInput

    module = model.fit(TimeSeries.from_values(torch.rand(40).numpy())).model
    return alike(module, PLModuleInput(past_target=torch.rand(32, 24, 1)))


QUIET = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}


def block_rnn() -> Subject:
    from darts.models import BlockRNNModel

    model = BlockRNNModel(24, 12, model="GRU", n_rnn_layers=2, n_epochs=1, pl_trainer_kwargs=QUIET)
    return forecaster(model)


def tft() -> Subject:
    from darts.models import TFTModel

    model = TFTModel(24, 12, add_relative_index=True, n_epochs=1, pl_trainer_kwargs=QUIET)
    return forecaster(model)


def kokoro() -> Subject:
    from kokoro.model import KModel

    sizes = {"n_token": 178, "hidden_dim": 512, "style_dim": 128, "n_layer": 3, "n_mels": 80, "max_dur": 50}
    albert = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 2048}
    vocoder = {"upsample_kernel_sizes": [20, 12], "upsample_rates": [10, 6], "upsample_initial_channel": 512}
    vocoder |= {"resblock_kernel_sizes": [3, 7, 11], "resblock_dilation_sizes": [[1, 3, 5]] * 3}
    vocoder |= {"gen_istft_n_fft": 20, "gen_istft_hop_size": 5}
    config = {**sizes, "plbert": albert, "istftnet": vocoder, "vocab": {}, "dropout": 0.2}
    no_weights = BytesIO()
    torch.save({}, no_weights)
    no_weights.seek(0)
    model = KModel("", {**config, "text_encoder_kernel_size": 5}, no_weights)
    tokens, style = torch.randint(1, 178, (1, 20)), torch.randn(1, 256)
    return Subject(model, lambda m: m.forward_with_tokens(tokens, style, 8.0), None)


def silero() -> Subject:
    from silero_vad import load_silero_vad

    chunk = torch.randn(1, 512)

    def call(m: nn.Module) -> Any:
        m.reset_states()
        return m(chunk, 16_000)

    return Subject(load_silero_vad(), call, None)


MODELS = {
    "VoiceEncoder": Model("resemblyzer", voice_encoder, "trained, 12 windows of 1.6 s"),
    "PyanNet": Model("pyannote.audio", pyannote, "10 s of sound"),
    "Silero VAD": Model("silero_vad", silero, "trained, a chunk of 32 ms"),
    "OpenUnmix": Model("openunmix", open_unmix, "255 frames of stereo"),
    "DPRNN-TasNet": Model("asteroid", dprnn, "1 s of sound at 8 kHz"),
    "HDemucs, low": Model("torchaudio", demucs, "1 s of stereo"),
    "MetricGAN+ generator": Model("speechbrain", metric_gan, "300 frames"),
    "CRDNN with LSTM": Model("speechbrain", crdnn, "100 frames"),
    "DeepSpeech": Model("torchaudio", deep_speech, "300 frames"),
    "Tacotron2": Model("torchaudio", tacotron2, "B = 2, 40 frames, the truth fed in"),
    "WaveRNN": Model("torchaudio", wave_rnn, "1200 samples, the truth fed in"),
    "Kokoro": Model("kokoro", kokoro, "20 phonemes"),
    "EnCodec, 24 kHz": Model("encodec", encodec, "1 s of sound"),
    "EasyOCR recognizer": Model("easyocr", easy_ocr, "a line of 64 x 400 pixels"),
    "SequenceTagger": Model("flair", flair_tagger, "16 sentences, packed"),
    "letters, LSTM(1024)": Model("stanza", stanza_letters, "8 texts of 25 to 60 letters, packed"),
    "Tokenizer": Model("stanza", stanza_tokenizer, "16 texts of 300 letters"),
    "RecurrentPPO policy": Model("sb3_contrib", recurrent_ppo, "B = 1; trains on 128 steps, 3 episodes"),
    "LSTMModule": Model("torchrl", lstm_module, "B = 1; trains on 16 x 64 steps with resets"),
    "GatedGraphConv": Model("torch_geometric", gated_graph, "500 nodes, 6 rounds"),
    "AttentiveFP": Model("torch_geometric", attentive_fp, "32 graphs of 25 nodes"),
    "GraphSAGE, LSTM": Model("torch_geometric", sage, "500 nodes of 8 neighbours"),
    "BlockRNNModel, GRU": Model("darts", block_rnn, "B = 32, 24 steps"),
    "TFTModel": Model("darts", tft, "B = 32, 24 steps"),
}
