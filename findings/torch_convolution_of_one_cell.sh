#!/usr/bin/env bash
# torch 2.13.0 (and 2.14.1) on a CPU: a convolution whose kernel is as large as its maps.
#
# One would guess: it is a matrix product, N x (C K K) by (C K K) x O, and oneDNN computes it in about a product's time.
# It does:         forward and backward pass together take several times as long as F.linear on the same memory, though
#                  maps and weight are laid out channels last, so that the product needs no copy.
# Seen:            1,024 maps of 3 x 3 cells, 3 x 3 kernel, one thread, CPU time beside other work: with 64 channels
#                  3.4 times, with 256 channels 4.6 times as long (AVX2); results equal to 1e-4.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
python3 -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.2.6
"$room/venv/bin/python" - << 'PY'
import statistics
import time

import torch
import torch.nn.functional as F

torch.set_num_threads(1)
torch.manual_seed(0)


def convolution(x, weight):
    return F.conv2d(x, weight).flatten(1)


def product(x, weight):
    return F.linear(*(t.permute(0, 2, 3, 1).flatten(1) for t in (x, weight)))


def turn(function, x, weight):
    x.grad = weight.grad = None
    start = time.process_time()
    out = function(x, weight)
    out.backward(torch.ones_like(out))
    return time.process_time() - start


for channels in (64, 256):
    x = torch.randn(1024, 3, 3, channels).permute(0, 3, 1, 2).requires_grad_()
    weight = torch.randn(channels, channels, 3, 3).contiguous(memory_format=torch.channels_last).requires_grad_()
    torch.testing.assert_close(convolution(x, weight), product(x, weight), rtol=1e-4, atol=1e-3)
    turns = [[turn(f, x, weight) for f in (convolution, product)] for _ in range(8)][1:]
    slow, quick = (statistics.median(times) for times in zip(*turns))
    print(f"torch {torch.__version__}, {channels} channels: the convolution takes {slow / quick:.1f} times the product's time")
    assert slow > 1.5 * quick, "the convolution has become about as quick as a product"
PY
