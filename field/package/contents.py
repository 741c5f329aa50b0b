"""Which files of wheels, of Debian's Python and of this program a device needs, and where they go."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path, PurePosixPath

from field import version
from field.package.errors import NotAsLocked
from field.package.lock import Deb
from field.package.unpack import Member, deb_members
from field.platforms import OWN_PYTHON
from rpi_runtime.errors import ResourceError

GPU_LIBRARY = "libLiteRtWebGpuAccelerator.so"
ROOMS = ("delegates", "field", "rpi_runtime", "toolkit", "vqa")  # those of the light install
# Parts that sizes are told by.
NUMPY, PILLOW, TOKENIZERS, TFLITE = "NumPy", "Pillow", "tokenizers", "TFLite runtime"
SMALL, PYTHON, OURS, BUNDLE = "Rich, Typer, Jinja", "Python and C library", "this program", "bundle"
_PARTS = {
    "numpy": NUMPY,
    "python3-numpy": NUMPY,
    "pillow": PILLOW,
    "python3-pil": PILLOW,
    "tokenizers": TOKENIZERS,
    "ai_edge_litert": TFLITE,
    "ml_dtypes": TFLITE,  # which ai-edge-litert imports
    "tflite_runtime": TFLITE,
}
# For those who compile, test or draw types; what ai-edge-litert has for compiling ahead of time.
_UNUSED_ENDS = (".pyi", ".pyx", ".pxd", ".h", ".hpp", ".a", ".c", ".cpp", ".f", ".f90", ".typed", "/RECORD")
_UNUSED_FOLDERS = {"tests", "test", "include", "f2py", "distutils", "_pyinstaller", "__pycache__"}
_UNUSED = re.compile(
    r"numpy/(typing|testing|doc|array_api|_core/lib|core/lib|random/lib|random/_examples)/"
    r"|numpy/(conftest|setup)\.py|numpy/.*/setup\.py|numpy/_core/.*_tests\."
    r"|ai_edge_litert/(aot|tools|tflite)/"
    r"|ai_edge_litert/vendors/(?!intel_openvino)"
    r"|PIL/_imaging(ft|cms|tk)\.cpython-311-arm-linux-gnueabihf\.so|PIL/(ImageTk|_imagingtk)"
)
_STDLIB_UNUSED = {
    *("ensurepip", "idlelib", "tkinter", "turtledemo", "lib2to3", "pydoc_data", "curses", "dbm", "sqlite3"),
    *("venv", "xmlrpc", "wsgiref", "__pycache__", "test", "tests", "turtle.py", "sitecustomize.py"),
}
# Extension modules whose libraries are not here, and tests of Python itself.
_DYNLOAD_UNUSED = re.compile(
    r"(_test|_xx|xx|_ctypes_test|nis|ossaudiodev|_crypt|_curses|_dbm|_gdbm|_sqlite3|readline|_ssl|_uuid|_tkinter)"
)


def part_of(name: str) -> str:
    """Of a wheel or a Debian package."""
    return _PARTS.get(name, SMALL)


def wanted(*, gpu: bool) -> Callable[[str], bool]:
    """Whether a file of site-packages goes along. Licences do."""

    def keep(path: str) -> bool:
        if path.endswith(f"/{GPU_LIBRARY}"):
            return gpu
        folders = set(path.split("/")[:-1])
        return not (path.endswith(_UNUSED_ENDS) or folders & _UNUSED_FOLDERS or _UNUSED.match(path))

    return keep


def own_rooms() -> Iterator[tuple[PurePosixPath, Member]]:
    """This program's own rooms, as they are imported here, in a fixed order."""
    for room in ROOMS:
        spec = find_spec(room)
        if spec is None or not spec.submodule_search_locations:
            raise ResourceError(f"the folder {room} of this program is not installed as files")
        folder = Path(next(iter(spec.submodule_search_locations)))
        for file in sorted(folder.rglob("*")):
            place = PurePosixPath(room, file.relative_to(folder).as_posix())
            if file.is_file() and "__pycache__" not in place.parts and not file.name.startswith("."):
                yield place, Member(file.read_bytes(), executable=False)
    version = own_version()
    told = f"Metadata-Version: 2.1\nName: hypervl-edge\nVersion: {version}\nLicense: Apache-2.0\n"
    info = PurePosixPath(f"hypervl_edge-{version}.dist-info", "METADATA")
    yield info, Member(told.encode(), executable=False)


def own_version() -> str:
    return version.own_version() or "0+source"


def deb_contents(
    deb: Deb, file: Path, keep: Callable[[str], bool]
) -> Iterator[tuple[PurePosixPath, Member, str]]:
    """Places in a runtime, files, and the parts they count for, of a Debian package. Libraries lie in one
    folder under the names that programs ask for: no link is needed, which some file systems and adb lack."""
    members = deb_members(file)
    copyright_file = f"usr/share/doc/{deb.package}/copyright"
    if copyright_file in members:
        yield PurePosixPath("root", copyright_file), members[copyright_file], PYTHON
    for library in deb.libraries:
        paths = sorted(path for path in members if path.rpartition("/")[2] == library)
        if not paths:
            raise NotAsLocked(f"{deb.file}: has no {library}", "Write the lock anew: scripts/lock_debs.py.")
        # A loader is started by its name; the rest is mapped.
        yield PurePosixPath("root/lib", library), Member(members[paths[0]].data, True), PYTHON
    for path, member in sorted(members.items()):
        place = _python_place(path) if deb.part == "python" else None
        if deb.part == "modules" and (inner := path.partition("usr/lib/python3/dist-packages/")[2]):
            place = PurePosixPath("site", inner) if keep(inner) else None
        # Extension modules of python3-numpy lie in this one; there are links to them in the other.
        if deb.part == "modules" and (inner := path.partition("usr/lib/python3.11/dist-packages/")[2]):
            place = PurePosixPath("site", inner) if keep(inner) else None
        if place is not None:
            yield place, member, PYTHON if deb.part == "python" else part_of(deb.package)


def _python_place(path: str) -> PurePosixPath | None:
    if path == f"usr/bin/python{OWN_PYTHON}":
        return PurePosixPath("root", path)
    inner = path.partition(f"usr/lib/python{OWN_PYTHON}/")[2]
    parts = set(inner.split("/"))
    if not inner or parts & _STDLIB_UNUSED or inner.startswith(f"config-{OWN_PYTHON}"):
        return None
    if inner.startswith("lib-dynload/") and _DYNLOAD_UNUSED.match(inner.removeprefix("lib-dynload/")):
        return None
    return PurePosixPath("root", path)
