"""Arrays out of files and messages, checked against the bytes that are there before any is built.

A header is a few dozen bytes and may declare any shape: believed, a damaged or hostile one would
fill the memory. Nothing here can run code: object arrays are refused, as is every pickle but
torch's ``weights_only`` subset.
"""

import base64
import binascii
import io
import math
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.lib import format as npy_format

from lrc.errors import TraceError

NPY_MAGIC = b"\x93NUMPY"
_LONGEST_HEADER = 1 << 16


def read_npy(path: Path) -> np.ndarray:
    """A .npy file, mapped into memory rather than read."""
    with open(path, "rb") as file:
        head = file.read(_LONGEST_HEADER)
    dtype, shape, order, offset = _header(head, path.stat().st_size, path.name)
    if not math.prod(shape):
        return np.empty(shape, dtype)
    return np.memmap(path, dtype, "r", offset, shape, order)


def parse_npy(data: bytes, place: str) -> np.ndarray:
    """A .npy file that is in memory already, not copied."""
    dtype, shape, order, offset = _header(data[:_LONGEST_HEADER], len(data), place)
    return np.frombuffer(data, dtype, math.prod(shape), offset).reshape(shape, order=order)


class Npz(Mapping):
    """Arrays of a .npz file, each read when it is asked for."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except Exception as error:  # zipfile raises whatever damage leads to
            raise TraceError(f"{path.name}: no zip file, or one cut short ({error})") from error
        self._members = {
            info.filename.removesuffix(".npy"): info
            for info in self._zip.infolist()
            if info.filename.endswith(".npy")
        }

    def __getitem__(self, name: str) -> np.ndarray:
        info, place = self._members[name], f"{self.path.name}, array {name!r}"
        try:
            with self._zip.open(info) as file:
                # Before the rest is unpacked: does it fit its own header?
                _header(file.read(_LONGEST_HEADER), info.file_size, place)
            return parse_npy(self._zip.read(info), place)
        except TraceError:
            raise
        except Exception as error:
            raise TraceError(f"{place}: damaged ({error})") from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)


def decode_base64(text: str, place: str) -> bytes:
    """Bytes that a JSON message carries as text."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise TraceError(f"{place}: no base64, or cut short ({error})") from error


def load_torch(path: Path):
    """What `torch.save` wrote, tensors and plain containers only."""
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).strip().splitlines() or [repr(error)]
        raise TraceError(
            f"{path.name}: no file of torch.save, damaged, or with more than tensors in it "
            f"({reason[0][:120]})"
        ) from error


def as_array(values, place: str) -> np.ndarray:
    """Integer or float array of an array, tensor or nested list."""
    if hasattr(values, "untyped_storage"):
        values = values.detach().cpu()
        # A view may repeat a few bytes for ever.
        if values.numel() * values.element_size() > values.untyped_storage().nbytes():
            raise TraceError(f"{place}: a tensor that declares more than it stores")
        values = values.float() if str(values.dtype) == "torch.bfloat16" else values
        values = values.numpy()
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise TraceError(f"{place}: lists of unequal length, so no array") from error
    if not array.size:
        array = array.astype(np.int64)  # an empty list has no dtype of its own
    if array.dtype.kind not in "iufb":
        raise TraceError(f"{place}: holds {array.dtype}, but numbers are needed")
    return array


def as_ids(values, place: str) -> np.ndarray:
    """Integer array, as `as_array`."""
    array = as_array(values, place)
    if array.dtype.kind not in "iu":
        raise TraceError(f"{place}: holds {array.dtype}, but expert ids are whole numbers")
    return array


def as_list(values, place: str) -> list[int] | None:
    """Whole numbers in a list, or None as it is."""
    if values is None:
        return None
    array = as_ids(values, place)
    if array.ndim != 1:
        raise TraceError(f"{place}: must be a list of numbers")
    return array.tolist()


def as_count(value, place: str) -> int | None:
    """A whole number from 0, or None as it is."""
    if value is None:
        return None
    array = as_ids(value, place)
    if array.size != 1 or array.min() < 0:
        raise TraceError(f"{place}: is {value!r}, but must be a whole number from 0")
    return int(array.item())


def _header(head, size, place):
    """dtype, shape, order and offset of the data, which must fit `size` bytes exactly."""
    stream = io.BytesIO(head)
    try:
        version = npy_format.read_magic(stream)
        read = npy_format.read_array_header_1_0
        if version != (1, 0):
            read = npy_format.read_array_header_2_0
        shape, fortran, dtype = read(stream)
    except Exception as error:
        raise TraceError(f"{place}: no .npy, or one cut short in its header ({error})") from error
    if dtype.hasobject:
        raise TraceError(f"{place}: holds Python objects, which are never loaded: save numbers")
    needed, there = math.prod(shape) * dtype.itemsize, size - stream.tell()
    if min(shape, default=0) < 0 or needed != there:
        raise TraceError(
            f"{place}: cut short or damaged: its header declares shape {list(shape)} of {dtype}, "
            f"{needed:,} bytes, but {there:,} follow"
        )
    return dtype, shape, "F" if fortran else "C", stream.tell()
