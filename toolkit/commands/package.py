"""`toolkit package`: one archive for a device, which is installed there without network or root."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rpi_runtime.errors import UsageError
from toolkit import report
from toolkit.commands import options as opt


def package(
    target: Annotated[
        str,
        typer.Option(
            help="What it is for: pi-arm64, pi-armv7, linux-arm64, linux-x64 or android-arm64.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="File to write, like board.tar.gz.", show_default=False)
    ],
    bundle: Annotated[
        Path | None,
        typer.Argument(
            help="Bundle folder that `toolkit convert` wrote; without one, only the runtime is packed.",
            show_default=False,
        ),
    ] = None,
    python: Annotated[
        str | None,
        typer.Option(
            help="The Python there: 3.11, 3.12 or 3.13, or own to bring one with its C library.",
            show_default="3.11; own for pi-armv7 and android-arm64",
        ),
    ] = None,
    deb: Annotated[
        bool, typer.Option("--deb", help="Write a Debian package for image builders (/opt/hypervl-edge).")
    ] = False,
    sysext: Annotated[
        bool, typer.Option("--sysext", help="Write a systemd system extension (.raw, by mksquashfs).")
    ] = False,
    as_json: opt.Json = False,
) -> None:
    """Pack the runtime, its libraries and a bundle for a device that has no network.

    Libraries are fetched once, by pip and from Debian's archive, to the very bytes that were tried, and kept
    in ~/.cache/hypervl-edge/packages. The archive holds install.sh, which needs no root, and uninstall.sh.
    The same input gives the same bytes.
    """
    from field.package.deb import write_deb
    from field.package.package import (
        Package,
        PackedBundle,
        check_runs_there,
        description,
        needs,
        write_archive,
    )
    from field.package.runtime import build_runtime
    from field.package.sysext import check_sysext, write_sysext
    from field.platforms import platform
    from toolkit.packing_view import PackingProgress, print_package

    found = platform(target)
    if deb and sysext:
        raise UsageError("--deb and --sysext are two kinds of package", "Give one of them.")
    if deb and found.android:
        raise UsageError("--deb: Android has no dpkg", "Make an archive: leave --deb out.")
    _check_output(output, (".deb",) if deb else (".raw",) if sysext else (".tar.gz", ".tgz"))
    if sysext:
        check_sysext(found)
    if bundle is not None:
        check_runs_there(bundle, found)
    packed = PackedBundle.open(bundle) if bundle is not None else None
    with PackingProgress() as progress:
        runtime = build_runtime(found, python, gpu=packed is not None and packed.gpu, tell=progress.tell)
        made = Package(runtime, packed)
        if sysext:
            progress.tell("packing")
            write_sysext(made, output)
        else:
            progress.count("packing", made.bytes)
            (write_deb if deb else write_archive)(made, output, progress.advance)
    if as_json:
        report.print_json({**description(made), "output": output, "output_bytes": output.stat().st_size})
    else:
        print_package(made, output, needs(runtime))


def _check_output(output: Path, endings: tuple[str, ...]) -> None:
    if output.is_dir():
        raise UsageError(f"-o {output} is a folder", "Name a file in it.")
    if not output.parent.is_dir():
        raise UsageError(f"-o {output}: there is no folder {output.parent}", "Create it first.")
    if not output.name.endswith(endings) or output.name in endings:
        raise UsageError(
            f"-o {output}: such a package ends in {endings[0]}",
            "Name it so. --deb writes a .deb, --sysext a .raw, and without them it is a .tar.gz.",
        )
