#!/usr/bin/env python3
"""Writes the binary payloads of the golden files, with encoders that are not ours.

Needs the modules cbor2, msgpack and zstandard. The text payloads are written by hand.
"""

import gzip
import math
import struct
from datetime import datetime, timezone
from pathlib import Path

import cbor2
import msgpack
import zstandard

HERE = Path(__file__).parent


def write(path, payload):
    (HERE / path).parent.mkdir(exist_ok=True)
    (HERE / path).write_bytes(payload)


def cbor():
    event = {"ts": 1700000000000, "temperature": 21.5, "n": 3, "ok": True, "status": "fine"}
    write("cbor/object.cbor", cbor2.dumps(event))
    write("cbor/array.cbor", cbor2.dumps([event, {"ts": 1700000001000, "n": -7, "status": None}]))
    write("cbor/nested.cbor", cbor2.dumps({"gps": {"lat": 1.25, "fix": {"ok": False}}, "raw": b"\x00\xff\x10"}))
    write("cbor/arrays_are_text.cbor", cbor2.dumps({"a": [1, -2, 2.5, "x\"y", None, True, {"k": [b"\x01"], 5: 6}]}))
    write("cbor/half_and_single_floats.cbor", cbor2.dumps({"h": 1.5, "f": 100000.0, "d": 0.1}, canonical=True))
    write("cbor/largest_integers.cbor", cbor2.dumps({"min": -(2**63), "max": 2**63 - 1}))
    write("cbor/tag_0_text_time.cbor", cbor2.dumps({"ts": cbor2.CBORTag(0, "2023-11-14T23:13:20.25+01:00"), "n": 1}))
    write("cbor/tag_1_epoch_time.cbor", cbor2.dumps({"ts": cbor2.CBORTag(1, 1700000000), "due": cbor2.CBORTag(1, 1700000001.5)}))
    write("cbor/self_described.cbor", cbor2.dumps(cbor2.CBORTag(55799, {"n": cbor2.CBORTag(37, 4)})))
    parts = {"d": cbor2.CBORTag(4, [-1, 215]), "b": cbor2.CBORTag(5, [-1, 43]), "n": cbor2.CBORTag(2, b"\x07"), "m": cbor2.CBORTag(3, b"\x06")}
    write("cbor/numbers_in_parts.cbor", cbor2.dumps(parts | {"temperature": cbor2.CBORTag(2, b"\x01" + b"\x00" * 9)}))
    write("cbor/dead_parts.cbor", cbor2.dumps({"v": cbor2.CBORTag(4, [1.5, 2])}))
    write("cbor/dead_not_a_number_later.cbor", cbor2.dumps([{"v": 1}, {"v": math.nan}]))
    write("cbor/integer_keys.cbor", cbor2.dumps({"n": 1, "m": {7: 2}}))
    # Indefinite lengths: {_ "text": (_ "ab", "c"), "list": [_ 1, 2], "bytes": (_ h'01', h'02')}
    write("cbor/indefinite.cbor", bytes.fromhex("bf6474657874 7f6261626163ff 646c697374 9f0102ff 656279746573 5f41014102ff ff"))
    write("cbor/dead_empty.cbor", b"")
    write("cbor/dead_cut.cbor", cbor2.dumps(event)[:-3])
    write("cbor/dead_huge_text.cbor", b"\xa1\x7b" + b"\x7f" + b"\xff" * 7)
    write("cbor/dead_huge_array.cbor", b"\x9b" + b"\xff" * 8)
    write("cbor/dead_huge_map.cbor", b"\xbb\x00\xff\xff\xff\xff\xff\xff\xff")
    write("cbor/dead_number.cbor", cbor2.dumps(17))
    write("cbor/dead_number_in_array.cbor", cbor2.dumps([event, 17]))
    write("cbor/dead_trailing.cbor", cbor2.dumps(event) + b"\x00")
    write("cbor/dead_reserved.cbor", b"\xa1\x61a\x1f")
    write("cbor/dead_unsigned.cbor", cbor2.dumps({"v": 2**64 - 1}))
    write("cbor/dead_negative.cbor", cbor2.dumps({"v": -(2**64)}))
    write("cbor/dead_bignum.cbor", cbor2.dumps({"v": 2**70}))
    write("cbor/dead_not_a_number.cbor", cbor2.dumps({"v": math.nan}))
    write("cbor/dead_not_utf8.cbor", b"\xa1\x61a\x62\xff\xfe")
    write("cbor/dead_tag_0.cbor", cbor2.dumps({"ts": cbor2.CBORTag(0, "noon")}))
    write("cbor/dead_simple.cbor", b"\xa1\x61a\xf8\x63")
    write("cbor/dead_key.cbor", cbor2.dumps({1.5: 1}))
    write("cbor/dead_break.cbor", b"\xa1\x61a\xff")
    write("cbor/dead_deep_objects.cbor", b"\xa1\x61a" * 9 + b"\x01")
    write("cbor/dead_deep_arrays.cbor", b"\xa1\x61a" + b"\x81" * 10_000 + b"\x01")
    write("cbor/dead_declared_type.cbor", cbor2.dumps({"temperature": "warm"}))
    write("cbor/dead_declared_object.cbor", cbor2.dumps({"temperature": {"c": 1}}))
    readings = [{"ts": 1700000000000 + 1000 * i, "n": i} for i in range(3)]
    write("cbor_rows/readings.cbor", cbor2.dumps({"data": {"readings": readings, "unit": "C"}, "fw": "1.2"}))
    write("cbor_rows/dead_missing.cbor", cbor2.dumps({"data": {"readings": 5}}))


def msgpack_files():
    event = {"ts": 1700000000000, "temperature": 21.5, "n": 3, "ok": True, "status": "fine"}
    write("msgpack/object.msgpack", msgpack.packb(event))
    write("msgpack/array.msgpack", msgpack.packb([event, {"ts": 1700000001000, "n": -7, "status": None}]))
    write("msgpack/nested.msgpack", msgpack.packb({"gps": {"lat": 1.25, "fix": {"ok": False}}, "raw": b"\x00\xff\x10"}))
    write("msgpack/arrays_are_text.msgpack", msgpack.packb({"a": [1, -2, 2.5, "x\"y", None, True, {"k": [b"\x01"]}]}))
    numbers = [0, 127, 128, 65535, 65536, 2**32, 2**63 - 1, -1, -32, -33, -129, -40000, -(2**31) - 1, -(2**63)]
    write("msgpack/integers.msgpack", msgpack.packb({f"v{i}": n for i, n in enumerate(numbers)}))
    write("msgpack/single_float.msgpack", msgpack.packb({"f": 0.5}, use_single_float=True))
    write("msgpack/long_texts.msgpack", msgpack.packb({"s8": "a" * 40, "s16": "b" * 300}))
    write("msgpack/map_16.msgpack", msgpack.packb({f"c{i}": i for i in range(20)}))
    time = lambda s, ns=0: msgpack.Timestamp(s, ns)
    write("msgpack/timestamp_32.msgpack", msgpack.packb({"ts": time(1700000000), "n": 1}))
    write("msgpack/timestamp_64.msgpack", msgpack.packb({"ts": time(1700000000, 250_000_000), "due": time(1700000001, 1000)}))
    write("msgpack/timestamp_96.msgpack", msgpack.packb({"ts": b"", "n": 1}).replace(b"\xc4\x00", b"\xc7\x0c\xff" + struct.pack(">Iq", 500, 1700000000)))
    write("msgpack/extension.msgpack", msgpack.packb({"x": msgpack.ExtType(5, b"\x01\x02\x03")}))
    write("msgpack/dead_empty.msgpack", b"")
    write("msgpack/dead_cut.msgpack", msgpack.packb(event)[:-3])
    write("msgpack/dead_huge_text.msgpack", b"\x81\xdb\xff\xff\xff\xff")
    write("msgpack/dead_huge_array.msgpack", b"\xdd\xff\xff\xff\xff")
    write("msgpack/dead_huge_map.msgpack", b"\xdf\xff\xff\xff\xff")
    write("msgpack/dead_never_used.msgpack", b"\x81\xa1a\xc1")
    write("msgpack/dead_number.msgpack", msgpack.packb(17))
    write("msgpack/dead_trailing.msgpack", msgpack.packb(event) + b"\x00")
    write("msgpack/dead_not_a_number_later.msgpack", msgpack.packb([{"v": 1}, {"v": math.inf}]))
    write("msgpack/dead_unsigned.msgpack", msgpack.packb({"v": 2**64 - 1}))
    write("msgpack/dead_not_utf8.msgpack", b"\x81\xa1a\xa2\xff\xfe")
    write("msgpack/dead_timestamp_length.msgpack", msgpack.packb({"ts": msgpack.ExtType(5, b"abc")}).replace(b"\x05abc", b"\xffabc"))
    write("msgpack/dead_key.msgpack", msgpack.packb({None: 1}))
    write("msgpack/dead_deep_arrays.msgpack", b"\x81\xa1a" + b"\x91" * 10_000 + b"\x01")
    write("msgpack/dead_ignored_deep_arrays.msgpack", b"\x81\xa1a\x82\xa1b\x01\xa1c" + b"\x91" * 200 + b"\x01")
    write("msgpack/dead_declared_type.msgpack", msgpack.packb({"temperature": True}))


def senml():
    # The dump of RFC 8428, section 6, byte by byte.
    pack = bytes.fromhex(
        "87a721781b75726e3a6465763a6f773a3130653230373361303130383030363a22fb41d303a15b001062236141200500"
        "67766f6c7461676501615602fb405e066666666666a3006763757272656e74062402fb3ff3333333333333a300676375"
        "7272656e74062302fb3ff4cccccccccccda3006763757272656e74062202fb3ff6666666666666a3006763757272656e"
        "74062102f93e00a3006763757272656e74062002fb3ff999999999999aa3006763757272656e74060002fb3ffb333333"
        "333333"
    )
    write("senml_cbor/rfc_8428_section_6.cbor", pack)
    write("senml_cbor/all_values.cbor", cbor2.dumps([
        {-2: "dev-1:", -3: 1700000000, -5: 20, -6: 100, 0: "level", 2: 1.5, 5: 7, 7: 30},
        {0: "open", 4: True}, {0: "label", 3: "A 1"}, {0: "blob", 8: b"\x00\xff\x10"}, {"x": [1, {2: 3}], 0: "n", 2: 1},
    ]))
    write("senml_cbor/decimal_fraction.cbor", cbor2.dumps([{-2: "dev-1:", 0: "t", 2: cbor2.CBORTag(4, [-1, 215])}]))
    write("senml_cbor/dead_map.cbor", cbor2.dumps({0: "a", 2: 1}))
    write("senml_cbor/dead_element.cbor", cbor2.dumps([5]))
    write("senml_cbor/dead_cut.cbor", pack[:-1])
    write("senml_cbor/dead_type.cbor", cbor2.dumps([{-2: "d", 2: "warm"}]))
    write("senml_cbor/dead_mandatory.cbor", cbor2.dumps([{-2: "d", "must_": 1, 2: 1}]))
    write("senml_cbor/dead_version.cbor", cbor2.dumps([{-2: "d", -1: 11, 2: 1}]))
    write("senml_cbor/dead_huge_array.cbor", b"\x9a\xff\xff\xff\xff\xa1\x02")
    write("senml_cbor/dead_trailing.cbor", cbor2.dumps([]) + b"\x00")


def compressed():
    text = b'[{"ts":1700000000000,"v":1},{"ts":1700000001000,"v":2}]'
    write("compressed/gzip.json.gz", gzip.compress(text, mtime=0))
    write("compressed/zstd.json.zst", zstandard.ZstdCompressor(write_content_size=False).compress(text))
    write("compressed/plain.json", text)
    write("compressed/dead_cut.json.gz", gzip.compress(text, mtime=0)[:-9])
    write("compressed/dead_bomb.json.gz", gzip.compress(b" " * (16 << 20) + text, mtime=0))
    write("compressed/dead_bomb.json.zst", zstandard.ZstdCompressor().compress(b" " * (16 << 20) + text))
    write("compressed/dead_content.json.gz", gzip.compress(b'{"v":', mtime=0))


cbor()
msgpack_files()
senml()
compressed()
