#!/usr/bin/env bash
# torch 2.14.1: two ONNX exports of one ExportedProgram.
#
# One would guess: torch.onnx.export(program, dynamo=True) leaves an ExportedProgram as it is, so that the next call gives
#                  the same file (another opset, another translation table).
# It does:         where a size depends on values (nonzero and the like), the second call of the same program raises
#                  ConversionError ("Pending unbacked symbols"). The program itself still runs. Trace once for each file.
# Seen:            works, ConversionError
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
python3 -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1 onnx==1.23.2 onnxscript==0.7.2 numpy==2.4.6
"$room/venv/bin/python" - << 'PY'
import torch


class Found(torch.nn.Module):
    def forward(self, x):
        return x[(x > 0).nonzero()[:, 0]]


program = torch.export.export(Found(), (torch.randn(8),))


def outcome():
    try:
        torch.onnx.export(program, dynamo=True, verbose=False)
    except Exception as error:
        return type(error).__name__
    return "works"


found = [outcome(), outcome()]
print("torch", torch.__version__, *found, "the program still gives", program.module()(torch.ones(8)).shape)
assert found == ["works", "ConversionError"], found
PY
