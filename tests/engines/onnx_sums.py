"""Shapes and sums of what an ONNX model answers to counted inputs. Arguments: file, length of every axis that is left open."""
import sys

import numpy
import onnxruntime

TYPES = {"tensor(float)": numpy.float32, "tensor(int64)": numpy.int64, "tensor(int32)": numpy.int32}

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
inputs = {}
for wanted in session.get_inputs():
    shape = [axis if isinstance(axis, int) and axis > 0 else int(sys.argv[2]) for axis in wanted.shape]
    counted = numpy.arange(int(numpy.prod(shape))).reshape(shape) % 17
    kind = TYPES[wanted.type]
    inputs[wanted.name] = (counted / 17 if kind == numpy.float32 else counted).astype(kind)
for answer in session.run(None, inputs):
    print(answer.shape, f"{answer.sum(dtype=numpy.float64):.6f}")
