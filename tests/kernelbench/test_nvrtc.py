"""The device code of exported files compiles with CUDA 12.1, the oldest that they promise to take.

NVRTC 12.1 is the compiler of that release as a library, which needs neither nvcc nor a GPU. It has
no host compiler beside it: what little of the standard library and of the CUDA runtime the source
names is declared here, and -default-device makes it compile the host part too.
"""

from __future__ import annotations

import ctypes
import importlib.util
import locale
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest
from exported import PROBLEMS, convolutions, load, planned

HEADERS = {
    "algorithm": """
        #pragma once
        namespace std {
        template <typename T>
        constexpr const T& min(const T& a, const T& b) { return b < a ? b : a; }
        template <typename T>
        constexpr const T& max(const T& a, const T& b) { return a < b ? b : a; }
        }
    """,
    "climits": "#define INT_MIN (-2147483647 - 1)\n",
    "cstddef": "namespace std { using size_t = decltype(sizeof 0); }\n",
    "cstdint": """
        namespace std {
        using int64_t = long;
        using uint64_t = unsigned long;
        using uint32_t = unsigned;
        using int16_t = short;
        using uint16_t = unsigned short;
        using uintptr_t = unsigned long;
        }
    """,
    "type_traits": """
        #pragma once
        namespace std {
        template <bool, typename First, typename>
        struct conditional { using type = First; };
        template <typename First, typename Second>
        struct conditional<false, First, Second> { using type = Second; };
        template <bool kFirst, typename First, typename Second>
        using conditional_t = typename conditional<kFirst, First, Second>::type;
        template <typename Type, Type kValue>
        struct integral_constant { static constexpr Type value = kValue; };
        template <bool kValue>
        using bool_constant = integral_constant<bool, kValue>;
        using false_type = bool_constant<false>;
        template <typename First, typename Second>
        constexpr bool is_same_v = false;
        template <typename Type>
        constexpr bool is_same_v<Type, Type> = true;
        }
    """,
    # And what nvcc has of GCC's.
    "cuda_runtime.h": """
        #define __builtin_huge_valf() __int_as_float(0x7f800000)
        template <typename Kernel>
        cudaError_t cudaFuncSetAttribute(Kernel*, cudaFuncAttribute, int);
        cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t*, const void*, void**);
        const char* cudaGetErrorString(cudaError_t);
    """,
}


def folder_of(package: str) -> Path:
    """Where one of NVIDIA's pip packages lies."""
    spec = importlib.util.find_spec(f"nvidia.{package}")
    assert spec is not None, f"pip install -r requirements-dev.txt: nvidia.{package} is missing"
    assert spec.submodule_search_locations is not None
    return Path(next(iter(spec.submodule_search_locations)))


@pytest.fixture(scope="module")
def nvrtc() -> ctypes.CDLL:
    """The library, of the version that matters."""
    library = ctypes.CDLL(str(folder_of("cuda_nvrtc") / "lib" / "libnvrtc.so.12"))
    major, minor = ctypes.c_int(), ctypes.c_int()
    assert library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)) == 0
    assert (major.value, minor.value) == (12, 1)
    return library


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """An exported file."""
    layer = next(problem for problem in PROBLEMS if problem.stem == "layer")
    return load(layer, tmp_path_factory.mktemp("exported"))


def compile_by(nvrtc: ctypes.CDLL, source: str, architecture: str) -> str:
    """What the compiler says; an empty string if it compiled to machine code.

    NVRTC 12.1 leaves the calling thread in the C locale, where Python reads files as ASCII, so the
    thread is one that ends with the call.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_compile_by, nvrtc, source, architecture).result()


def _compile_by(nvrtc: ctypes.CDLL, source: str, architecture: str) -> str:
    program = ctypes.c_void_p()
    texts = (ctypes.c_char_p * len(HEADERS))(*map(str.encode, HEADERS.values()))
    names = (ctypes.c_char_p * len(HEADERS))(*map(str.encode, HEADERS))
    arguments = (source.encode(), b"cuda.cu", len(HEADERS), texts, names)
    assert nvrtc.nvrtcCreateProgram(ctypes.byref(program), *arguments) == 0
    include = folder_of("cuda_runtime") / "include"  # of the same release: cuda_fp16.h
    options = [f"-arch={architecture}", "-std=c++17", "-default-device", f"-I{include}"]
    given = (ctypes.c_char_p * len(options))(*map(str.encode, options))
    status = nvrtc.nvrtcCompileProgram(program, len(options), given)
    size = ctypes.c_size_t()
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size))
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    said = log.value.decode()
    return said if status == 0 and size.value > 10_000 else said or f"status {status}"


@pytest.mark.parametrize("convolution", convolutions())
def test_compiles_with_cuda_12_1(convolution: str, nvrtc: ctypes.CDLL, module: ModuleType) -> None:
    for capability, architecture in (((7, 0), "sm_70"), ((9, 0), "sm_90a")):
        family, arguments = planned(module, convolutions()[convolution], capability)
        source = family.cuda.replace("TEMPLATE_ARGUMENTS", ", ".join(arguments))
        assert compile_by(nvrtc, source, architecture) == "", architecture


def test_every_family_is_compiled(module: ModuleType) -> None:
    families = [planned(module, spec, (9, 0))[0] for spec in convolutions().values()]
    assert set(module.FAMILIES) == set(families)


def test_the_locale_stays(nvrtc: ctypes.CDLL, module: ModuleType) -> None:
    before = locale.nl_langinfo(locale.CODESET)
    compile_by(nvrtc, module.FAMILIES[0].cuda, "sm_90a")
    assert locale.nl_langinfo(locale.CODESET) == before


def test_an_error_is_noticed(nvrtc: ctypes.CDLL, module: ModuleType) -> None:
    said = compile_by(nvrtc, module.FAMILIES[0].cuda, "sm_90a")
    assert 'identifier "TEMPLATE_ARGUMENTS" is undefined' in said
