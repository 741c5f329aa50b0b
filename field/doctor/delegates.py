"""GPU, NNAPI and NPU: what is there, and whether this toolkit's runtime can use it. None is needed."""

from __future__ import annotations

from collections.abc import Iterator

from delegates.cpu import gpu_library_loads_here
from delegates.npu import VENDORS
from field.doctor.finding import FINE, WARNING, Finding
from field.machine import Machine, Node

_ON_CPU = "Graphs run on the CPU."
# Programs of a package are glibc's (no wheel is made for Android), and a process has one C library.
_BIONIC = "It is made for Android's C library, and packages run with glibc: an app can use it, they cannot."
_NNAPI_SINCE, _NNAPI_DEPRECATED = 27, 35  # Android 8.1 and 15 (developer.android.com, NNAPI migration guide)
_TRIAL = "toolkit run tries it on a stored sample before it is trusted."


def usable(machine: Machine) -> tuple[str, ...]:
    """What `toolkit run --delegate` could name there, before any trial."""
    gpu = ("gpu",) if _opens_gpu(machine) else ()
    npu = ("npu:openvino",) if _openvino(machine) else ()
    return ("cpu", *gpu, *npu)


def for_apps(machine: Machine) -> tuple[str, ...]:
    """What a phone has beside that, which its own programs alone can load."""
    if not machine.is_android:
        return ()
    names = {"OpenCL": ("libOpenCL.so", "libOpenCL-pixel.so"), "Vulkan": ("libvulkan.so",)}
    names |= {"NNAPI": ("libneuralnetworks.so",), "QNN": ("libQnnHtp.so",)}
    return tuple(title for title, libraries in names.items() if machine.library(*libraries))


def _opens_gpu(machine: Machine) -> bool:
    """LiteRT's accelerator runs on Vulkan, in a 64-bit process of glibc's."""
    nodes = _render_nodes(machine)
    return (
        not machine.is_android
        and machine.machine != "armv7l"
        and gpu_library_loads_here(machine.cpu).loads
        and bool(_vulkan(machine) and machine.vulkan_drivers)
        and (not nodes or any(node.is_open for node in nodes))
    )


def _vulkan(machine: Machine) -> str:
    return machine.library("libvulkan.so.1", "libvulkan.so")


def _render_nodes(machine: Machine) -> list[Node]:
    return [node for node in machine.nodes if node.path.startswith("/dev/dri/renderD")]


def _openvino(machine: Machine) -> str:
    """Its version. It comes with pip, and LiteRT's wheel for x86-64 alone has what runs on it."""
    if machine.machine != "x86_64":
        return ""
    return next((p.packages["openvino"] for p in machine.pythons if "openvino" in p.packages), "")


def _gpu(machine: Machine) -> Iterator[Finding]:
    nodes = _render_nodes(machine)
    verdict = gpu_library_loads_here(machine.cpu)
    if _opens_gpu(machine):
        device = next((node.path for node in nodes if node.is_open), "in software, no /dev/dri/renderD*")
        yield Finding("delegate.gpu", FINE, f"Vulkan ({device})", _TRIAL)
    elif machine.is_android:
        library = machine.library("libOpenCL.so", "libOpenCL-pixel.so") or _vulkan(machine)
        yield Finding("delegate.gpu", FINE, library or "no OpenCL", _BIONIC if library else _ON_CPU)
    elif machine.machine == "armv7l":
        yield Finding("delegate.gpu", FINE, "not used", f"tflite-runtime has no GPU delegate. {_ON_CPU}")
    elif not verdict.loads:
        yield Finding(
            "delegate.gpu", FINE, "not used", f"LiteRT's GPU library does not run here: {verdict.reason}."
        )
    elif not _vulkan(machine) or not machine.vulkan_drivers:
        missing = "Vulkan driver (icd.d)" if _vulkan(machine) else "libvulkan.so.1"
        yield Finding("delegate.gpu", FINE, f"none: no {missing}", _ON_CPU)
    else:
        yield Finding(
            "delegate.gpu",
            WARNING,
            f"Vulkan, but {nodes[0].path} is closed to {machine.user or 'this user'}",
            f"The GPU cannot be opened. {_ON_CPU}",
            "sudo usermod -aG render $USER, then log in again.",
        )


def _nnapi(machine: Machine) -> Iterator[Finding]:
    if machine.android_api is None:
        return
    library = machine.library("libneuralnetworks.so")
    if not library or machine.android_api < _NNAPI_SINCE:
        yield Finding(
            "delegate.nnapi", FINE, f"none: {'Android before 8.1' if library else 'no library'}", _ON_CPU
        )
        return
    old = "Deprecated here" if machine.android_api >= _NNAPI_DEPRECATED else "Deprecated since Android 15"
    yield Finding("delegate.nnapi", FINE, library, f"{old}. {_BIONIC}")


def _npu(machine: Machine) -> Iterator[Finding]:
    found: list[str] = []
    follows: list[str] = []
    for names, title, meaning in _NPUS:
        library = next((p for p in machine.libraries if p.rpartition("/")[2].startswith(names)), "")
        if library:
            found.append(f"{title} ({library})")
            follows.append(_BIONIC if machine.is_android else meaning)
    if openvino := _openvino(machine):
        checked = VENDORS["openvino"].sdk.rpartition("=")[2]
        found.append(f"OpenVINO {openvino}")
        follows.append(
            f"For --delegate npu: {_TRIAL}" if openvino == checked else f"It was checked with {checked}."
        )
    told = " ".join(dict.fromkeys(follows))
    yield Finding("delegate.npu", FINE, ", ".join(found) or "none", told or _ON_CPU)


# Names of libraries, whose they are, and what follows on Linux.
_NPUS = (
    (
        ("libQnnHtp.so",),
        "Qualcomm QNN",
        "LiteRT's wheels have nothing that runs graphs on it: it comes with an Android app.",
    ),
    (
        ("libneuronusdk_adapter",),
        "MediaTek Neuron",
        "LiteRT's wheels have nothing that runs graphs on it: it comes with an Android app.",
    ),
    (
        ("libedgetpu.so",),
        "Coral Edge TPU",
        "It takes only what Google's Edge TPU compiler made, and this toolkit makes none of it.",
    ),
    (("libhailort.so",), "Hailo", "It runs Hailo's own files alone, no TFLite graphs."),
    (
        ("libopenvino.so",),
        "OpenVINO of the system",
        f"LiteRT's plugin needs the Python package {VENDORS['openvino'].sdk}, on x86-64.",
    ),
)

CHECKS = (_gpu, _nnapi, _npu)
