#!/usr/bin/env bash
# torch 2.13.0 (and 2.14.1) on a CPU with AVX2, without AVX-512: the weight gradient of a 3x3 convolution of large channels-last maps.
#
# One would guess: channels last is the quicker order of memory for convolutions on CPUs, as torch's own texts say, in both
#                  passes.
# It does:         forward and input gradient are as quick or quicker, but the weight gradient takes several times as long as for
#                  contiguous tensors: oneDNN runs the same direct kernel (jit:avx2) on maps whose channels lie side by side. It is
#                  so much slower that copying both maps to contiguous ones first would pay; nine matrix products pay more.
# Seen:            2 maps of 256 channels, one thread, CPU time beside other work: of 32 x 32 cells 1.38 of the time of contiguous
#                  maps, of 100 x 136 cells 5.73. ONEDNN_MAX_CPU_ISA=AVX2 lets a processor that can do more take the same kernel.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
python3 -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.2.6
ONEDNN_MAX_CPU_ISA=AVX2 "$room/venv/bin/python" - << 'PY'
import statistics
import time

import torch

torch.set_num_threads(1)
torch.manual_seed(0)
ORDERS = torch.contiguous_format, torch.channels_last


def turn(tensors):
    start = time.process_time()
    torch.ops.aten.convolution_backward(
        *tensors, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [False, True, False]
    )
    return time.process_time() - start


for height, width in ((32, 32), (100, 136)):
    gradient, maps, weight = torch.randn(2, 256, height, width), torch.randn(2, 256, height, width), torch.randn(256, 256, 3, 3)
    both = [[t.contiguous(memory_format=order) for t in (gradient, maps, weight)] for order in ORDERS]
    turns = [[turn(tensors) for tensors in both] for _ in range(6)][1:]
    contiguous, last = (statistics.median(times) for times in zip(*turns))
    print(f"torch {torch.__version__}, {height} x {width}: channels last takes {last / contiguous:.2f} of the time")
assert last > 1.5 * contiguous
PY
