"""Speech for vad_stream.py from a synthesiser or from files, which frames have it, and noise around it."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import torch
from scipy.io import wavfile
from torch import Tensor
from torch.nn.functional import avg_pool1d, interpolate

RATE, WINDOW, HOP = 16000, 400, 160  # samples: of a second, in a frame, from frame to frame
NOISES = ("white", "rumble", "gusts", "babble")
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


def read_speech(files: list[Path] | None) -> tuple[Tensor, Tensor]:
    """Samples `[S]` from -1 to 1 to train and to test with, of files or of a synthesiser.

    The test is the last quarter of the files, or other voices that read other sentences.
    """
    if not files:
        return synthesise(VOICES[:6], TEXT[:6]), synthesise(VOICES[6:], TEXT[6:])
    sound = torch.cat([read_wav(path) for path in files])
    parts = sound.tensor_split([len(sound) * 3 // 4])
    if len(sound) < 10 * RATE or not all(0 < label(part).float().mean() < 1 for part in parts):
        raise SystemExit(
            f"--wav: expected at least 10 s of speech with pauses, got {len(sound) / RATE:.1f} s"
        )
    return parts


def synthesise(voices: list[str], lines: list[str]) -> Tensor:
    """Each voice reads the lines and pauses after each."""
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
    """The samples of a file, its channels mixed."""
    try:
        rate, samples = wavfile.read(path)
    except (OSError, ValueError) as error:
        raise SystemExit(f"--wav {path}: expected a WAV file, got: {error}") from None
    if samples.dtype != np.int16 or not len(samples):
        raise SystemExit(f"--wav {path}: expected samples of 16 bits, got {len(samples)} of {samples.dtype}")
    return resample(samples.reshape(len(samples), -1).mean(1) / 2.0**15, rate)


def resample(samples: np.ndarray, rate: int) -> Tensor:
    """The samples at RATE, on straight lines between those given."""
    x = torch.tensor(samples, dtype=torch.float32)
    return interpolate(x.view(1, 1, -1), len(x) * RATE // rate, mode="linear").flatten()


def energies(sound: Tensor) -> Tensor:
    """The energy of each frame, `[T]`, T = 1 + (S - WINDOW) // HOP. sound: `[S]`."""
    return avg_pool1d(sound.square().unsqueeze(0), WINDOW, HOP)[0]


def label(clean: Tensor) -> Tensor:
    """Which frames are speech, `[T]`: those at most 40 dB below the loudest."""
    energy = energies(clean)
    return energy > 1e-4 * energy.amax()


def mix(clean: Tensor, kind: str, snr: float, generator: torch.Generator) -> Tensor:
    """The sound `[S]` with noise. snr: signal to noise in dB, where there is speech."""
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
