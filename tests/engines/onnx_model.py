"""Makes an ONNX model with external data out of MiniLM's weights: word embeddings and the first layer's wide half.

The protocol buffers are written by hand (field numbers of onnx.proto3), since no engine needs the package that writes them.
Arguments: model.safetensors, folder. Makes model.onnx and model.onnx.data there.
"""
import os
import sys

from safetensors import safe_open

FLOAT, INT64 = 1, 7
EXTERNAL = 1


def varint(number):
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes(out) + bytes([number])


def number(field, value):
    return varint(field << 3) + varint(value)


def part(field, *pieces):
    """A field of bytes: text, or a message of the fields given."""
    whole = b"".join(piece.encode() if isinstance(piece, str) else piece for piece in pieces)
    return varint(field << 3 | 2) + varint(len(whole)) + whole


def node(kind, inputs, output):
    return part(1, *(part(1, name) for name in inputs), part(2, output), part(4, kind))


def tensor(name, array, offset):
    """A tensor whose bytes lie in the file beside."""
    where = {"location": "model.onnx.data", "offset": str(offset), "length": str(array.nbytes)}
    external = (part(13, part(1, key), part(2, value)) for key, value in where.items())
    shape = (number(1, length) for length in array.shape)
    return part(5, *shape, number(2, FLOAT), part(8, name), *external, number(14, EXTERNAL))


def value(field, name, kind, *dimensions):
    shape = part(2, *(part(1, dimension) for dimension in dimensions))
    return part(field, part(1, name), part(2, part(1, number(1, kind), shape)))


def main(weights, folder):
    with safe_open(weights, framework="np") as file:
        dense = "encoder.layer.0.intermediate.dense."
        arrays = {
            "E": file.get_tensor("embeddings.word_embeddings.weight"),
            "W": file.get_tensor(dense + "weight").T.copy(),
            "B": file.get_tensor(dense + "bias"),
        }
    described, offset = [], 0
    with open(os.path.join(folder, "model.onnx.data"), "wb") as data:
        for name, array in arrays.items():
            described.append(tensor(name, array, offset))
            offset += data.write(array.tobytes())
    graph = part(
        7,
        node("Gather", ["E", "ids"], "x"),
        node("MatMul", ["x", "W"], "y"),
        node("Add", ["y", "B"], "z"),
        node("Relu", ["z"], "out"),
        part(2, "first"),
        *described,
        value(11, "ids", INT64, number(1, 1), part(2, "n")),
        value(12, "out", FLOAT, number(1, 1), part(2, "n"), number(1, arrays["B"].size)),
    )
    with open(os.path.join(folder, "model.onnx"), "wb") as model:
        model.write(number(1, 9) + graph + part(8, part(1, ""), number(2, 17)))


main(sys.argv[1], sys.argv[2])
