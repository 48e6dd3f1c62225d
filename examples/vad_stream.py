"""Say 100 times a second whether somebody speaks: a voice activity detector that hears frame by frame.

A many-to-many network whose input never ends. Every 10 ms comes a frame of sound, as the log energies of its
bands of frequency; a GRU goes one step, and out goes the probability that the frame is speech. Here
fastrnn.Stateful keeps the state from call to call. In training a call is a chunk, and `detach` cuts the
gradient between chunks. In use a call is a frame; one sees how long it takes.

A synthesiser speaks (pip install espeakng-loader), in the test with other voices and sentences; or people do,
in recordings without noise (--wav). The program mixes noise of several kinds with the speech. A frame is
speech where the clean sound has energy. The baseline takes the energy of the noisy frame for its score.
"""

from __future__ import annotations

import time
from pathlib import Path

import common
import numpy as np
import torch
from support.speech import HOP, NOISES, RATE, WINDOW, energies, label, mix, read_speech
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, one_hot

import fastrnn

BANDS, H, CHUNK, B = 24, 64, 200, 16  # of frequency; units; frames in a chunk; recordings side by side
SNRS = (20, 10, 5, 0, -5)  # signal to noise in dB
SHAPE = torch.hann_window(WINDOW)
PITCH = (1 + torch.linspace(0, RATE / 2, WINDOW // 2 + 1) / 700).log()  # the ear's scale of frequencies
BANK = one_hot((PITCH / PITCH[-1] * BANDS).long().clamp(max=BANDS - 1), BANDS).float()


def features(sound: Tensor) -> Tensor:
    """Log energies of bands, `[..., T, BANDS]`. sound: `[..., S]`, T = 1 + (S - WINDOW) // HOP."""
    spectrum = torch.stft(sound, WINDOW, HOP, window=SHAPE, center=False, return_complex=True)
    return (spectrum.abs().square().mT @ (BANK / BANK.sum(0)) + 1e-5).log() / 4


def draw_chunks(clean: Tensor, seconds: int, generator: torch.Generator) -> list[tuple[int, Tensor, Tensor]]:
    """B noisy recordings in chunks: the first frame, features `[B, CHUNK, BANDS]`, labels `[B, CHUNK]`."""
    x, y = [], []
    for i in range(B):
        place, snr, loudness = torch.rand(3, generator=generator).tolist()
        excerpt = clean.roll(int(place * len(clean)))[: seconds * RATE]
        noisy = mix(excerpt, NOISES[i % len(NOISES)], SNRS[-1] + snr * (SNRS[0] - SNRS[-1]), generator)
        x.append(features(10 ** (loudness - 0.8) * noisy))
        y.append(label(excerpt).float())
    x, y = torch.stack(x), torch.stack(y)
    return [(t, x[:, t : t + CHUNK], y[:, t : t + CHUNK]) for t in range(0, y.shape[1], CHUNK)]


class Detector(nn.Module):
    """Features `[B, T, BANDS]` to the logit of speech for each frame, `[B, T]`."""

    def __init__(self, library):
        super().__init__()
        self.rnn = fastrnn.Stateful(library.GRU(BANDS, H, batch_first=True))
        self.head = nn.Linear(H, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)).squeeze(-1)


def loss_of(model: Detector, chunk: tuple[int, Tensor, Tensor]) -> Tensor:
    """The loss of a chunk. The state goes on to the next one, the gradient does not come back."""
    place, x, y = chunk
    if place == 0:
        model.rnn.reset()
    model.rnn.detach()
    return binary_cross_entropy_with_logits(model(x), y)


@torch.no_grad()
def listen(model: Detector, x: Tensor) -> Tensor:
    """The probabilities of speech in whole recordings, `[B, T]`."""
    model.rnn.reset()
    return model(x).sigmoid()


@torch.inference_mode()
def stream(model: Detector, sound: Tensor) -> tuple[Tensor, np.ndarray]:
    """The same frame by frame, `[T]`, and microseconds of each: features and network, `[T, 2]`."""
    model.rnn.reset()
    p, seconds = [], []
    for start in range(0, len(sound) - WINDOW + 1, HOP):
        begin = time.perf_counter()
        x = features(sound[start : start + WINDOW])
        middle = time.perf_counter()
        p.append(model(x.unsqueeze(0)).sigmoid())
        seconds.append((middle - begin, time.perf_counter() - middle))
    return torch.cat(p, 1)[0], 1e6 * np.array(seconds)


def plot(args, x: Tensor, y: Tensor, p: Tensor, times: dict[str, np.ndarray]) -> None:
    """The beginning of a recording, what is heard in it, and how long frames take."""
    figure, axes = common.new_figure("Is somebody speaking?", 2, 2, size=(13, 6), width_ratios=(2, 1))
    (bands, chance), right = axes[:, 0], common.join(axes[:, 1])
    seconds = np.arange(min(800, len(y))) * HOP / RATE
    T, end = len(seconds), len(seconds) * HOP / RATE
    bands.imshow(x[:T].T, origin="lower", aspect="auto", extent=(0, end, 0, BANDS), cmap="magma")
    bands.set(title="log energy: speech in gusts, signal to noise 0 dB", ylabel="band of frequency")
    chance.fill_between(seconds, y[:T], step="mid", color="#fdd49e", label="speech")
    chance.plot(seconds, p[:T], color=common.COLOURS["fastrnn"], label="probability that the GRU gives")
    chance.set(xlabel="time, s", ylabel="probability", xlim=(0, end), ylim=(0, 1.03))
    common.legend_below(chance, 0.2)
    bins = np.geomspace(10, 2000, 80)
    for name, each in times.items():
        network = each[:, 1].clip(max=1999)
        right.hist(network, bins, histtype="step", lw=2, color=common.COLOURS[name], label=f"network, {name}")
    right.hist(each[:, 0].clip(max=1999), bins, color="#bbbbbb", label="features", zorder=0)
    right.set(title="time of a frame", xlabel="microseconds (the last bar: 2000 and more)", ylabel="frames")
    ticks = [10, 20, 50, 100, 200, 500, 1000, 2000]
    right.set_xscale("log")
    right.set_xticks(ticks, ticks)
    right.minorticks_off()
    common.legend_below(right, 0.1)
    common.save(figure, args.out)


def main() -> None:
    from sklearn.metrics import roc_auc_score

    parser = common.make_parser(__doc__, "vad_stream", epochs=15)
    parser.add_argument("--wav", type=Path, nargs="+", help="clean speech in 16 bits; its last quarter tests")
    args = common.parse(parser)
    training, test = read_speech(args.wav)
    print(f"{len(training) / RATE:.0f} s of speech to train, {len(test) / RATE:.0f} s to test")
    seconds = 15 if args.quick else 60
    generator = torch.Generator().manual_seed(args.seed)
    truth = label(test)
    noisy = {(kind, snr): mix(test, kind, snr, generator) for kind in NOISES for snr in SNRS}
    x = {key: features(sound) for key, sound in noisy.items()}
    held_out = draw_chunks(training, seconds, generator)
    x_held_out, y_held_out = (torch.cat(each, 1) for each in list(zip(*held_out, strict=True))[1:])

    runs = common.train(
        args,
        build=Detector,
        loss_of=loss_of,
        batches=lambda generator: draw_chunks(training, seconds, generator),
        epochs=args.epochs,
        score=lambda model: roc_auc_score(y_held_out.flatten(), listen(model, x_held_out).flatten()),
        rate=3e-3,
    )

    detectors = {"energy": lambda key: energies(noisy[key])}
    for run in runs:
        detectors[f"GRU, {run.name}"] = lambda key, model=run.model: listen(model, x[key].unsqueeze(0))[0]
    table = common.Table("area under the ROC curve", *(f"{snr} dB" for snr in SNRS))
    for title, kinds in (("noise", NOISES[:3]), ("babble", NOISES[3:])):
        for name, detect in detectors.items():
            areas = [[roc_auc_score(truth, detect((kind, snr))) for kind in kinds] for snr in SNRS]
            table.add_row(f"{name}, {title}", *(f"{np.mean(area):.3f}" for area in areas))
    common.console.print(table)

    table = common.Table(
        "microseconds a frame", "features, p50", "network, p50", "network, p99", "training, s"
    )
    times = {}
    for run in runs:
        p, times[run.name] = stream(run.model, noisy["gusts", 0])
        middle, late = np.percentile(times[run.name], (50, 99), axis=0)
        row = f"{middle[0]:.0f}", f"{middle[1]:.0f}", f"{late[1]:.0f}", f"{run.seconds:.1f}"
        table.add_row(run.name, *row)
    common.console.print(table)
    difference = (p - listen(run.model, x["gusts", 0].unsqueeze(0))[0]).abs().max()
    print(f"frame by frame and in one call, probabilities differ by at most {difference:.0e}")
    plot(args, x["gusts", 0], truth, p, times)


if __name__ == "__main__":
    main()
