"""Every program of examples/ runs with --quick, draws a picture, and answers wrong options with one line."""

import re
import runpy
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import run_python

for package in "matplotlib", "pooch", "rich", "sklearn":
    pytest.importorskip(package)

FOLDER = Path(__file__).parents[2] / "examples"
SHORT = ["compile", "drop_in", "onnx_export", "streaming"]  # without options and picture
PROGRAMS = sorted({path.stem for path in FOLDER.glob("*.py")} - {"common", "freeze", *SHORT})
ARGUMENTS = {"sentiment": ["--data=reviews"], "vad_stream": ["--wav=sound.wav"]}  # what they lack otherwise
PATHS = ["code", "conll", "data", "mnist", "pairs", "prices", "text", "wav"]  # options with a file


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Run a program in an empty folder, and return its exit code and what it prints.

    In this process: the imports would take longer than most programs.
    """
    from matplotlib import pyplot

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setenv("COLUMNS", "150")
    threads = torch.get_num_threads()

    def run_program(name, *arguments):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
        try:
            runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
            code = None
        except SystemExit as end:
            code = end.code
        out, err = capsys.readouterr()
        return (1, out + err + code) if isinstance(code, str) else (code or 0, out + err)

    yield run_program
    pyplot.close("all")
    torch.set_num_threads(threads)


def write_reviews(folder):
    """A few reviews, in the form of the rt-polarity files."""
    folder.mkdir()
    for side, words in ("pos", "a warm and funny film"), ("neg", "dull , long and empty"):
        lines = [f"{words} , number {i} of its kind .\n" for i in range(60)]
        (folder / f"rt-polarity.{side}").write_text("".join(lines), encoding="latin-1")


def write_sound(path, seconds):
    """A tone with pauses, in place of a voice."""
    t = np.arange(16000 * seconds) / 16000
    samples = 8000 * np.sin(2 * np.pi * 300 * t) * (np.sin(5 * t) > 0)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", None))
        file.writeframes(samples.astype("<i2").tobytes())


def test_freeze(run):
    """int8 is as exact as torch.ao's, or more so, on each model; and costs a trained one less than 1%."""
    code, told = run("freeze", "--quick", "--threads=1", "--layer-impl=both")
    assert code == 0, told
    own, other = (
        [float(e) for e in re.findall(rf"{name}, int8 .*?([0-9.]+)%", told)]
        for name in ("frozen", "torch.ao")
    )
    assert len(own) == len(other) == 3
    assert all(e <= o for e, o in zip(own, other, strict=True)), told
    (change,) = re.findall(r"frozen, int8: .*\(([-+.0-9]+)%\)", told)
    assert abs(float(change)) < 1


@pytest.mark.parametrize("name", PROGRAMS)
def test_quick(name, run, tmp_path, recwarn):
    """It prints a figure for each library, and its picture is one."""
    from PIL import Image

    write_reviews(tmp_path / "reviews")
    write_sound(tmp_path / "sound.wav", seconds=20)
    arguments = ["--quick", "--layer-impl=both", "--threads=1", "--out=new/picture.png"]
    code, told = run(name, *arguments, *ARGUMENTS.get(name, []))
    assert code == 0, told
    assert not [w.message for w in recwarn if issubclass(w.category, UserWarning | RuntimeWarning)]
    for library in "torch", "fastrnn":
        assert re.search(rf"\b{library}\b.*\d\.\d", told), told
    with Image.open("new/picture.png") as image:
        pixels = image.width * image.height
        colours = image.convert("RGB").getcolors(pixels)
        assert image.width >= 800 and image.height >= 400
    most, _ = max(colours)
    assert len(colours) > 50 and most < 0.99 * pixels


@pytest.mark.parametrize("name", PROGRAMS)
def test_wrong_options(name, run, tmp_path):
    code, told = run(name, "--help")
    assert code == 0
    options = set(re.findall(r"^ +--([\w-]+)", told, re.MULTILINE))
    assert {"layer-impl", "quick", "out"} <= options, told
    named = set(re.findall(r"^ +--([\w-]+) (?:FILE|FOLDER|PATH)\b", told, re.MULTILINE))
    assert named <= set(PATHS), "PATHS lacks an option"

    code, told = run(name, "--out=picture.gif")
    assert code == 2 and told.endswith("--out: picture.gif does not end in .png\n"), told

    (tmp_path / "noise").write_bytes(b"\xff\xfe\x00noise\x81\n" * 100)
    (tmp_path / "words").write_text("a few words\n")
    (tmp_path / "zip").write_bytes(b"PK\x03\x04")
    write_sound(tmp_path / "silence", seconds=0)
    (tmp_path / "empty").touch()
    (tmp_path / "folder").mkdir()
    for option in sorted(options & set(PATHS)):
        for path in "missing", "noise", "words", "zip", "silence", "empty", "folder":
            code, told = run(name, "--quick", f"--{option}={path}")
            assert code == 1 and len(told.splitlines()) == 1, f"--{option} {path}: {told}"
            assert path != "missing" or f"--{option} missing" in told, told


@pytest.mark.parametrize("name", SHORT)
def test_short(name, tmp_path, monkeypatch):
    """It is right, prints something, and is short. In another process, since it changes options of torch."""
    if name == "onnx_export":
        for package in "onnx", "onnxruntime", "onnxscript":
            pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    path = FOLDER / f"{name}.py"
    done = run_python(str(path), env={"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0 and done.stdout, done.stdout + done.stderr
    assert len(path.read_text().splitlines()) < 30


def test_all_are_listed():
    table = (FOLDER / "README.md").read_text()
    for name in [*PROGRAMS, *SHORT]:
        assert f"| [{name}.py]({name}.py) |" in table
