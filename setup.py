"""Builds fastrnn._C by handing CMakeLists.txt the Python and the torch that are installed here."""

import subprocess
import sys
from pathlib import Path

import pybind11
import torch
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from torch.utils.cpp_extension import include_paths, library_paths

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    def build_extension(self, extension):
        target = Path(self.get_ext_fullpath(extension.name)).resolve()
        # One folder for each Python and torch, kept, so that every kind of install builds only what changed.
        build = ROOT / "build" / f"{sys.implementation.cache_tag}-torch-{torch.__version__}"
        build.mkdir(parents=True, exist_ok=True)
        options = {
            "CMAKE_LIBRARY_OUTPUT_DIRECTORY": target.parent,
            "CMAKE_BUILD_TYPE": "Debug" if self.debug else "Release",
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": pybind11.get_cmake_dir(),
            "FASTRNN_TORCH_INCLUDES": ";".join(include_paths()),
            "FASTRNN_TORCH_LIBRARIES": ";".join(library_paths()),
            "FASTRNN_TORCH_CXX11_ABI": int(torch.compiled_with_cxx11_abi()),
        }
        defines = [f"-D{name}={value}" for name, value in options.items()]
        subprocess.run(["cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja", *defines], check=True)
        subprocess.run(["cmake", "--build", str(build)], check=True)


setup(ext_modules=[Extension("fastrnn._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
