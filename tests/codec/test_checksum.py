"""Test that isal and zlib compute the same checksums, so that no stored byte depends on what is installed."""

from __future__ import annotations

import random
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from hutch.codec.frame import crc32

ROOT = Path(__file__).parents[2]
RANDOM = random.Random(20260914)
WITHOUT = "import sys; sys.modules['isal'] = None; "


def test_isal_computes_it_where_it_is_installed() -> None:
    assert crc32.__module__ == "isal.isal_zlib"


def test_every_length_has_the_number_that_zlib_computes() -> None:
    data = RANDOM.randbytes(3000)
    for length in range(len(data)):
        assert crc32(data[:length]) == zlib.crc32(data[:length]), length


@pytest.mark.parametrize("length", [4095, 4096, 4097, 65_535, 524_288, 1_048_577, 20_000_003])
def test_a_large_value_has_the_number_that_zlib_computes(length: int) -> None:
    data = RANDOM.randbytes(length)
    assert crc32(data) == zlib.crc32(data)


@pytest.mark.parametrize("start", [0, 1, 2**31 - 1, 2**31, 2**32 - 1, *(RANDOM.randrange(2**32) for _ in range(20))])
def test_every_start_value_goes_on_as_in_zlib(start: int) -> None:
    for length in (0, 1, 3, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 255, 256, 257, 1000):
        data = RANDOM.randbytes(length)
        assert crc32(data, start) == zlib.crc32(data, start), length


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_every_buffer_is_read_from_any_address(kind: type[bytes]) -> None:
    data = RANDOM.randbytes(700)
    for start in range(64):
        assert crc32(memoryview(kind(data))[start:], start) == zlib.crc32(data[start:], start)


def test_what_is_no_buffer_is_refused_as_by_zlib() -> None:
    for call in (crc32, zlib.crc32):
        with pytest.raises(TypeError):
            call("text")  # type: ignore[arg-type]


def test_without_isal_zlib_computes_it() -> None:
    code = WITHOUT + "import zlib; from hutch.codec.frame import crc32; assert crc32 is zlib.crc32"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_without_isal_every_vector_of_the_format_holds() -> None:
    code = (
        WITHOUT + "import pytest; sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', 'tests/codec/test_format.py']))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300
    )
    assert result.returncode == 0, result.stdout
    assert " passed" in result.stdout
