"""Loading of the arrays of an NPZ file, none of which may take more memory than its file gives reason to expect."""

import lzma
import math
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lossworks.checks import InputError, listed, nearest
from lossworks.runs.memory import available

__all__ = ["Arrays", "read_npz"]

Arrays = dict[str, np.ndarray]

DAMAGED = (
    OSError,
    EOFError,
    MemoryError,
    NotImplementedError,  # a way of compression that is not known
    RuntimeError,  # an encrypted file
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
)
"""The errors that reading a damaged NPZ file may raise."""
HOW = "save it with np.savez(path, X=..., y=...)"
FREELY = 1 << 28
"""Up to this many bytes an array may expand from however few."""
EXPANDS = 200
"""How many times its compressed size a larger array may take."""
SHARE = 0.5
"""The share of the free memory that one array may take."""


def read_npz(path: Path, names: Sequence[str]) -> Arrays:
    """The arrays of these names.

    Raises:
        InputError: the file is damaged or lacks an array; an array holds objects, or takes more memory than is allowed.
    """
    with path.open("rb") as stream:
        try:
            file = np.load(stream, allow_pickle=False)
        except (ValueError, *DAMAGED):
            raise InputError(f"{path} is not an NPZ file: {HOW}") from None
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise InputError(f"{path} is not an NPZ file but a single array: {HOW}")
        for name in names:
            if name not in file:
                hint = nearest(name, file.files)
                raise InputError(f"{path} has no array {name!r}{hint}; its arrays are {listed(file.files)}: {HOW}")
        return {name: _array(file, name, f"{path}, array {name!r}") for name in names}


def _array(file: np.lib.npyio.NpzFile, name: str, where: str) -> np.ndarray:
    archive = file.zip
    assert archive is not None
    inside = f"{name}.npy" if f"{name}.npy" in archive.namelist() else name
    try:
        member = archive.getinfo(inside)
        shape, dtype, begins = _declared(archive, member)
    except (ValueError, *DAMAGED):
        raise InputError(f"{where} is damaged: save the file again") from None
    if dtype.hasobject:
        raise InputError(
            f"{where} holds pickled objects, which are not read because they can run code: save numbers or fixed-width "
            f"text (astype(str))"
        )
    if any(length < 0 for length in shape):
        raise InputError(f"{where} is damaged: its header says the shape {shape}, and a length is at least 0")
    said, held = math.prod(shape) * dtype.itemsize, member.file_size - begins
    if said != held:
        raise InputError(f"{where} is damaged: its header says {said} bytes, and there are {held}")
    _check_size(where, member, said)
    try:
        return np.asarray(file[name])
    except (ValueError, *DAMAGED):
        raise InputError(f"{where} is damaged: save the file again") from None


def _declared(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> tuple[tuple[int, ...], np.dtype, int]:
    """The shape and the dtype in an array's header, and where its values begin."""
    with archive.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(stream)
        return shape, dtype, stream.tell()


def _check_size(where: str, member: zipfile.ZipInfo, size: int) -> None:
    packed = max(member.compress_size, 1)
    if size > FREELY and size > EXPANDS * packed:
        raise InputError(
            f"{where} takes {size / 1e9:.1f} GB in memory from {packed / 1e6:.1f} MB in the file, more than {EXPANDS} "
            f"times as much: if that is right, save it uncompressed, with np.savez"
        )
    free = available()
    if free is not None and size > SHARE * free:
        raise InputError(
            f"{where} takes {size / 1e9:.1f} GB in memory, more than half of the {free / 1e9:.1f} GB that are free: "
            f"save fewer rows, or a smaller dtype such as float32"
        )
