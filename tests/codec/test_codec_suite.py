"""Test every built-in codec, and the example of a plugin, with the kit for codecs; and test that the kit can fail."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any, ClassVar

import pytest

import hutch
from hutch.codec.pickled import Pickled
from hutch.codec.select import make_codec
from hutch.discovery.codecs import build_codec
from hutch.testing import CodecSuite

EXAMPLE = Path(__file__).parents[2] / "examples" / "zlib_json"
KEY = "a key of some length"

pytestmark = pytest.mark.usefixtures("unmeasured")


class TestMsgpack(CodecSuite):
    @pytest.fixture
    def codec(self) -> hutch.Codec:
        return make_codec("msgpack", {})


class TestJson(CodecSuite):
    @pytest.fixture
    def codec(self) -> hutch.Codec:
        return make_codec("json", {})


class TestPickle(CodecSuite):
    unpickles = True

    @pytest.fixture
    def codec(self) -> hutch.Codec:
        return make_codec("pickle", {})


class TestSignedPickle(CodecSuite):
    @pytest.fixture
    def codec(self) -> hutch.Codec:
        return make_codec("pickle", {"key": KEY})


class TestPassthrough(CodecSuite):
    values: ClassVar[list[Any]] = [Pickled(pickle.dumps({1: 2}))]

    @pytest.fixture
    def codec(self) -> hutch.Codec:
        return make_codec("passthrough", {})


class TestZlibJson(CodecSuite):
    @pytest.fixture
    def codec(self) -> hutch.Codec:
        return build_codec(
            hutch.find_plugins(hutch.StoreConfig("memory", extra_plugin_dirs=(EXAMPLE,))), "zlib-json", {}
        )


class Naive(hutch.Codec):
    """What everybody writes first: JSON as it is."""

    headers = b"\x92"

    def encode(self, value: object, /) -> tuple[int, bytes]:
        return 0x92, json.dumps(value).encode()

    def decode(self, header: int, body: bytes, /) -> Any:
        return json.loads(body)


def test_the_kit_finds_what_a_naive_codec_does_wrong() -> None:
    suite, codec = CodecSuite(), Naive()
    with pytest.raises(AssertionError, match="reserved"):
        suite.test_its_header_bytes_are_its_own(codec)
    with pytest.raises(AssertionError, match="came back as"):
        suite.test_a_value_comes_back_equal_and_of_the_same_type(codec, [(1,)])
    with pytest.raises((ValueError, TypeError, RecursionError)):
        suite.test_what_it_cannot_keep_is_refused(codec)
    with pytest.raises((ValueError, RecursionError)):
        suite.test_hostile_bytes_are_refused_in_bounded_time_and_memory(codec, [1])
