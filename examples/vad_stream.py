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

import ctypes
import time
import wave
from collections.abc import Callable, Sequence
from pathlib import Path

import common
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool1d, binary_cross_entropy_with_logits, interpolate, one_hot

import fastrnn

RATE, WINDOW, HOP = 16000, 400, 160  # samples: of a second, in a frame, from frame to frame
BANDS, H, CHUNK, B = 24, 64, 200, 16  # of frequency; units; frames in a chunk; recordings side by side
NOISES = ("white", "rumble", "gusts", "babble")
SNRS = (20, 10, 5, 0, -5)  # signal to noise in dB
VOICES = ["en-us+m1", "en-gb+f2", "en-us+m3", "en-gb+f4", "en-us+f1", "en-gb+m2", "en-us+f5", "en-gb+m7"]
TEXT = """The sun was low when we came to the harbour, and the boats were already in.
How long have you been waiting here?
Please send me the second page again, I could not read it.
Seven, twenty three, one hundred and five.
My sister plays the violin; her brother listens.
Take the small road on the left, then ask for the old mill.
No.
It will rain tomorrow, they say, but not before the afternoon.
Who left the window open?
We had bread, cheese and a few apples, so nobody was hungry.""".splitlines()


# ---- sound ----


def synthesise(voices: list[str], lines: list[str]) -> Tensor:
    """Samples `[S]` from -1 to 1: each voice reads the lines and pauses after each."""
    try:
        from espeakng_loader import get_data_path, load_library
    except ImportError:
        raise SystemExit(
            "pip install espeakng-loader, or give recordings of clean speech: --wav FILE"
        ) from None
    parts: list[np.ndarray] = []

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
    def keep(samples, count, _):
        if samples and count:
            parts.append(np.ctypeslib.as_array(samples, (count,)) / 2.0**15)
        return 0

    espeak = load_library()
    rate = espeak.espeak_Initialize(2, 0, get_data_path().encode(), 0)  # 2: call back with samples, and wait
    espeak.espeak_SetSynthCallback(keep)
    pauses = np.random.default_rng(0)
    for voice in voices:
        espeak.espeak_SetVoiceByName(voice.encode())
        for line in lines:
            espeak.espeak_Synth(line.encode(), len(line) + 1, 0, 1, 0, 1, None, None)
            parts.append(np.zeros(int(rate * pauses.uniform(0.3, 1.5))))
    return resample(np.concatenate(parts), rate)


def read_wav(path: Path) -> Tensor:
    """The samples `[S]` of a file, from -1 to 1, its channels mixed."""
    try:
        with wave.open(str(path)) as file:
            channels, width, rate, count, *_ = file.getparams()
            if width != 2 or count * rate == 0:
                got = f"{count} samples of {8 * width} bits at {rate} Hz"
                raise SystemExit(f"--wav {path}: expected samples of 16 bits, got {got}")
            samples = np.frombuffer(file.readframes(count), "<i2").reshape(-1, channels)
        return resample(samples.mean(1) / 2.0**15, rate)
    except (OSError, EOFError, wave.Error, ValueError) as error:
        raise SystemExit(f"--wav {path}: expected a WAV file, got: {str(error) or 'end of file'}") from None


def resample(samples: np.ndarray, rate: int) -> Tensor:
    """The samples at RATE, on straight lines between those given."""
    x = torch.tensor(samples, dtype=torch.float32)
    return interpolate(x.view(1, 1, -1), len(x) * RATE // rate, mode="linear").flatten()


def mix(clean: Tensor, kind: str, snr: float, generator: torch.Generator) -> Tensor:
    """The sound `[S]` with noise. snr: in dB, where there is speech."""
    S = len(clean)
    noise = torch.randn(S, generator=generator)
    if kind == "babble":  # eight others
        shifts = torch.randint(S, (8,), generator=generator).tolist()
        noise = torch.stack([clean.roll(shift) for shift in shifts]).sum(0)
    elif kind != "white":  # deep
        noise = torch.fft.irfft(torch.fft.rfft(noise) / (torch.fft.rfftfreq(S, 1 / RATE) + 50), S)
    if kind == "gusts":  # louder and softer about once a second
        swell = torch.randn(1, 1, 2 + S // RATE, generator=generator)
        noise = noise * (1.5 * interpolate(swell, S, mode="linear").flatten()).exp()
    speech = label(clean).float().mean().clamp(min=1e-6)  # there may be none at all
    power = clean.square().mean() / speech
    return clean + noise * (power / noise.square().mean().clamp(min=1e-12) / 10 ** (snr / 10)).sqrt()


# ---- frames ----

WINDOW_SHAPE = torch.hann_window(WINDOW)
PITCH = (1 + torch.linspace(0, RATE / 2, WINDOW // 2 + 1) / 700).log()  # the ear's scale of frequencies
BANK = one_hot((PITCH / PITCH[-1] * BANDS).long().clamp(max=BANDS - 1), BANDS).float()
BANK = BANK / BANK.sum(0)


def features(sound: Tensor) -> Tensor:
    """Log energies of bands, `[..., T, BANDS]`. sound: `[..., S]`, T = 1 + (S - WINDOW) // HOP."""
    spectrum = torch.stft(sound, WINDOW, HOP, window=WINDOW_SHAPE, center=False, return_complex=True)
    return (spectrum.abs().square().mT @ BANK + 1e-5).log() / 4


def energies(sound: Tensor) -> Tensor:
    """The energy of each frame, `[T]`. sound: `[S]`."""
    return avg_pool1d(sound.square().unsqueeze(0), WINDOW, HOP)[0]


def label(clean: Tensor) -> Tensor:
    """Which frames are speech, `[T]`: those at most 40 dB below the loudest."""
    energy = energies(clean)
    return energy > 1e-4 * energy.amax()


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


# ---- the network ----


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
    T = min(800, len(y))
    end = T * HOP / RATE
    bands.imshow(x[:T].T, origin="lower", aspect="auto", extent=(0, end, 0, BANDS), cmap="magma")
    bands.set(title="log energy: speech in gusts, signal to noise 0 dB", ylabel="band of frequency")
    seconds = np.arange(T) * HOP / RATE
    chance.fill_between(seconds, y[:T], step="mid", color="#fdd49e", label="speech")
    chance.plot(seconds, p[:T], color=common.COLOURS["fastrnn"], label="probability that the GRU gives")
    chance.set(xlabel="time, s", ylabel="probability", xlim=(0, end), ylim=(0, 1.03))
    chance.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
    bins = np.geomspace(20, 2000, 80)
    for name, each in times.items():
        hist = each[:, 1].clip(max=1999)
        right.hist(hist, bins, histtype="step", lw=2, color=common.COLOURS[name], label=f"network, {name}")
    right.hist(each[:, 0].clip(max=1999), bins, color="#bbbbbb", label="features", zorder=0)
    right.set(
        xscale="log",
        xlabel="microseconds (the last bar: 2000 and more)",
        ylabel="frames",
        title="time of a frame",
    )
    right.set_xticks([20, 50, 100, 200, 500, 1000, 2000], [20, 50, 100, 200, 500, 1000, 2000], minor=False)
    right.minorticks_off()
    right.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=3)
    common.save(figure, args.out)


def main() -> None:
    from sklearn.metrics import roc_auc_score

    parser = common.make_parser(__doc__, "vad_stream")
    add = parser.add_argument
    add("--wav", type=Path, nargs="+", help="clean speech in 16 bits; the last quarter is the test")
    add("--epochs", type=common.positive, default=15, help="of training (%(default)s)")
    args = common.parse(parser)
    if args.wav:
        sound = torch.cat([read_wav(path) for path in args.wav])
        training, test = sound.tensor_split([len(sound) * 3 // 4])
        if len(sound) < 10 * RATE or not all(0 < label(part).float().mean() < 1 for part in (training, test)):
            raise SystemExit(
                f"--wav: expected at least 10 s of speech with pauses, got {len(sound) / RATE:.1f} s"
            )
    else:
        training, test = synthesise(VOICES[:6], TEXT[:6]), synthesise(VOICES[6:], TEXT[6:])
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
        epochs=3 if args.quick else args.epochs,
        score=lambda model: roc_auc_score(y_held_out.flatten(), listen(model, x_held_out).flatten()),
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=3e-3),
    )

    def areas(score: Callable[[tuple[str, int]], Tensor], kinds: Sequence[str]) -> list[str]:
        """Under the ROC curve, at each SNR; the mean over the kinds of noise."""
        each = ([roc_auc_score(truth, score((kind, snr))) for kind in kinds] for snr in SNRS)
        return [f"{np.mean(area):.3f}" for area in each]

    table = common.Table("area under the ROC curve", *(f"{snr} dB" for snr in SNRS))
    for title, kinds in ((", noise", NOISES[:3]), (", babble", NOISES[3:])):
        table.add_row("energy" + title, *areas(lambda key: energies(noisy[key]), kinds))
        for run in runs:
            row = areas(lambda key, run=run: listen(run.model, x[key].unsqueeze(0))[0], kinds)
            table.add_row(f"GRU, {run.name}{title}", *row)
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
