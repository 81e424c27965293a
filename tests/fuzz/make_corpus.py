#!/usr/bin/env python3
"""Writes the seeds: small files, good and bad in one way each, from which fuzzing sets out.

    python3 tests/fuzz/make_corpus.py     # overwrites the seeds, leaves other files alone

Nothing of Sinter's is used: the formats are written down a second time here. The corpus also holds
inputs that fuzzing found; their names begin with "found-".
"""
import json
import pathlib
import struct

HERE = pathlib.Path(__file__).parent / "corpus"
WIDTH = {"I64": 8, "F64": 8, "F32": 4, "I32": 4, "U8": 1, "F16": 2, "BF16": 2, "BOOL": 1, "I16": 2}
KEPT = ["I64", "F64", "F32", "I32", "U8"]  # the others are converted; I16 is refused


def write(target, name, data):
    folder = HERE / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)


def ramp(count, start=0):
    return bytes((start + i) % 256 for i in range(count))


# ---- CIFAR-10: records of a label and 3,072 pixels ------------------------------------------------

RECORD = bytes([3]) + bytes(3072)
write("cifar", "one-record", RECORD)
write("cifar", "two-records", bytes([0]) + ramp(3072) + bytes([9]) + ramp(3072, 7))
write("cifar", "label-10", RECORD + bytes([10]) + bytes(3072))
write("cifar", "cut-off", RECORD + bytes([1]) + bytes(100))
write("cifar", "empty", b"")


# ---- safetensors: header length, JSON, bytes ------------------------------------------------------

def safetensors(tensors, metadata=None):
    """tensors: {name: (dtype, shape, bytes)}, laid out in their order."""
    header, data = {}, b""
    if metadata is not None:
        header["__metadata__"] = metadata
    for name, (dtype, shape, content) in tensors.items():
        count = WIDTH[dtype]
        for extent in shape:
            count *= extent
        assert len(content) == count
        header[name] = {"dtype": dtype, "shape": shape,
                        "data_offsets": [len(data), len(data) + count]}
        data += content
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def raw(header, data=b""):
    return struct.pack("<Q", len(header)) + header + data


ENTRY = b'"w":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}'
write("safetensors", "no-tensors", safetensors({}))
write("safetensors", "one-tensor", safetensors({"w": ("F32", [2, 3], ramp(24))}))
write("safetensors", "every-dtype", safetensors(
    {name: (name, [1], ramp(WIDTH[name])) for name in KEPT}, {"format": "pt"}))
# Zero, subnormals, the largest, infinity and NaN of each; an empty one; truths that are not 1.
write("safetensors", "converted", safetensors(
    {"h": ("F16", [6], struct.pack("<6H", 0x8000, 1, 0x83FF, 0x7BFF, 0xFC00, 0x7C01)),
     "b": ("BF16", [2, 3], struct.pack("<6H", 0x8000, 1, 0x807F, 0x7F7F, 0xFF80, 0x7F81)),
     "e": ("F16", [2, 0], b""), "t": ("BOOL", [4], b"\x00\x01\x02\xff")}))
write("safetensors", "int16", safetensors({"w": ("I16", [2], ramp(4))}))
write("safetensors", "scalar-and-empty", safetensors(
    {"s": ("F64", [], ramp(8)), "e": ("I32", [0, 5], b""), "é\n": ("U8", [1] * 8, b"x")}))
write("safetensors", "escapes", raw(b'{"\\u0077\\n":{"dtype":"U8","shape":[],"data_offsets":[0,1]}}',
                                    b"x"))
write("safetensors", "duplicate", raw(b"{" + ENTRY + b"," + ENTRY + b"}", b"xx"))
write("safetensors", "gap", raw(b'{"w":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}', b"xx"))
write("safetensors", "overlap",
      raw(b"{" + ENTRY + b',"v":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}', b"xxx"))
write("safetensors", "huge-shape", raw(
    b'{"w":{"dtype":"F64","shape":[4294967296,4294967296],"data_offsets":[0,0]}}'))
write("safetensors", "huge-header", struct.pack("<Q", 2**63) + b"{}")
write("safetensors", "nested", raw(b'{"w":[[[[[[[['))
write("safetensors", "not-utf8", raw(b'{"\xff\x1b[31m":{}}'))
write("safetensors", "long-token", raw(b'{"w":"' + b"x" * 1500 + b"\x01"))
write("safetensors", "many-keys", raw(b"{" + b",".join(b'"%d":{}' % i for i in range(200)) + b"}"))


# ---- checkpoints: safetensors with a version and a hash -------------------------------------------

DTYPES = {"I64": "int64", "F64": "float64", "F32": "float32", "I32": "int32", "U8": "uint8"}


def fnv1a(data):
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return value


def checkpoint(tensors, metadata, version="1"):
    def text(string):
        return struct.pack("<q", len(string.encode())) + string.encode()

    metadata = dict(sorted({**metadata, "sinter_checkpoint": version}.items()))
    told = b"".join(text(key) + text(value) for key, value in metadata.items())
    for name, (dtype, shape, content) in sorted(tensors.items()):
        told += text(name) + text(DTYPES[dtype]) + struct.pack("<q", len(shape))
        told += b"".join(struct.pack("<q", extent) for extent in shape) + content
    return safetensors(tensors, {**metadata, "sinter_hash": f"{fnv1a(told):016x}"})


# What the target's own little training would save.
TRAINING = {"model.weight": ("F32", [1, 2], ramp(8)), "model.bias": ("F32", [1], ramp(4)),
            "optimizer.step": ("I64", [], struct.pack("<q", 5)),
            "optimizer.0.exp_avg": ("F32", [1, 2], ramp(8)),
            "optimizer.1.exp_avg": ("F32", [1], ramp(4)),
            "optimizer.0.exp_avg_sq": ("F32", [1, 2], ramp(8)),
            "optimizer.1.exp_avg_sq": ("F32", [1], ramp(4)),
            "extra.losses": ("F64", [2], ramp(16))}
write("checkpoint", "training", checkpoint(TRAINING, {"step": "5", "--model": "cifar_cnn"}))
write("checkpoint", "nothing", checkpoint({}, {}))
write("checkpoint", "version-2", checkpoint({}, {}, "2\x1b[31m" + "x" * 1000))
write("checkpoint", "reserved-key", checkpoint({}, {"sinter_other": "1"}))
write("checkpoint", "other-name", checkpoint({"weights\x07": ("U8", [1], b"x")}, {}))
write("checkpoint", "damaged", checkpoint(TRAINING, {"step": "5"})[:-1] + b"\xff")
write("checkpoint", "no-version", safetensors({"model.w": ("U8", [1], b"x")}, {"step": "1"}))
