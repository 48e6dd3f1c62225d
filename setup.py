"""Build fastrnn._C: give CMakeLists.txt the Python, the torch and the CUDA that are installed here.

FASTRNN_CUDA=auto|0|1: build with CUDA if torch has it and nvcc is there (auto, the default), never, always.
TORCH_CUDA_ARCH_LIST=8.0;9.0a;10.0+PTX: the devices to build for.
"""

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pybind11
import torch
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from torch.utils.cpp_extension import include_paths, library_paths

ROOT = Path(__file__).resolve().parent
HEADERS = runpy.run_path(str(ROOT / "fastrnn/headers.py"))


def find_nvcc():
    """The path of nvcc, or None. A build needs nvcc but no GPU."""
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    places = [*(f"{home}/bin" for home in homes), os.environ.get("PATH", os.defpath), "/usr/local/cuda/bin"]
    return os.environ.get("CUDACXX") or shutil.which("nvcc", path=os.pathsep.join(places))


def cuda_options():
    """The CUDA options of CMakeLists.txt."""
    wanted = os.environ.get("FASTRNN_CUDA") or "auto"
    if wanted not in ("auto", "0", "1"):
        sys.exit(f"FASTRNN_CUDA: expected auto, 0 or 1, got {wanted!r}")
    nvcc, missing = find_nvcc(), []
    if torch.version.cuda is None:
        missing.append(f"a torch that is built with CUDA (this is torch {torch.__version__})")
    if nvcc is None:
        missing.append("nvcc (on the path, in $CUDA_HOME/bin, or named by CUDACXX)")
    if wanted == "1" and missing:
        sys.exit("FASTRNN_CUDA=1 needs " + " and ".join(missing))
    if wanted == "0" or missing:
        return {"FASTRNN_CUDA": "OFF"}
    # If torch's CUDA libraries are Python packages, their headers are beside them.
    packages = Path(torch.__file__).resolve().parent.parent / "nvidia"
    return {
        "FASTRNN_CUDA": "ON",
        "CMAKE_CUDA_COMPILER": nvcc,
        "FASTRNN_TORCH_CUDA": torch.version.cuda,
        "FASTRNN_CUDA_INCLUDES": ";".join(map(str, sorted(packages.glob("*/include")))),
    }


class CMakeBuild(build_ext):
    def build_extension(self, extension):
        target = Path(self.get_ext_fullpath(extension.name)).resolve()
        # One folder for each Python and torch. It stays, so every kind of install builds only what changed.
        build = ROOT / "build" / f"{sys.implementation.cache_tag}-torch-{torch.__version__}"
        build.mkdir(parents=True, exist_ok=True)
        options = {
            "CMAKE_LIBRARY_OUTPUT_DIRECTORY": target.parent,
            "CMAKE_BUILD_TYPE": "Debug" if self.debug else "Release",
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": pybind11.get_cmake_dir(),
            "FASTRNN_TORCH_INCLUDES": ";".join(include_paths()),
            "FASTRNN_TORCH_LIBRARIES": ";".join(library_paths()),
            "FASTRNN_STAMP": HEADERS["stamp_of"](ROOT / "csrc"),
            "FASTRNN_TORCH_CXX11_ABI": int(torch.compiled_with_cxx11_abi()),
            **cuda_options(),
        }
        defines = [f"-D{name}={value}" for name, value in options.items()]
        subprocess.run(["cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja", *defines], check=True)
        subprocess.run(["cmake", "--build", str(build)], check=True)


class Headers(build_py):
    """Puts what fastrnn.build_cell compiles with into the package. An editable install has it in csrc/."""

    def run(self):
        super().run()
        if self.editable_mode:
            return
        include = Path(self.build_lib, "fastrnn/include")
        shutil.rmtree(include, ignore_errors=True)  # an earlier build may have had others
        for path in HEADERS["files_of"](ROOT / "csrc"):
            target = include / path.relative_to(ROOT / "csrc")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)


setup(
    ext_modules=[Extension("fastrnn._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild, "build_py": Headers},
)
