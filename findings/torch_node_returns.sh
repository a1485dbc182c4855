#!/usr/bin/env bash
# torch 2.14.1: torchrun on two nodes (c10d rendezvous, --max-restarts), one of which is killed and comes back.
#
# One would guess: the returning node joins the next round, and both go on, as torchrun's documentation says.
# It does:         the two nodes wait for different keys of the rendezvous' store, and both end after a minute with
#                  DistStoreError, "wait timeout after 60000ms".
# Seen:            so with torch 2.14.1 (the script fails where it is otherwise). With
#                  TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 the node is taken in, and both end well.
set -euo pipefail
room=$(mktemp -d)
trap 'rm -rf "$room"; kill $(jobs -p) 2> /dev/null || true' EXIT
python3 -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1 numpy
cat > "$room/rank.py" << 'PY'
import datetime
import pathlib
import time

import torch.distributed as dist

dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=30))
for i in range(100):
    dist.barrier()
    pathlib.Path(__file__).with_name("begun").touch()
    time.sleep(0.1)
PY
export OMP_NUM_THREADS=1
node() {
    exec "$room/venv/bin/torchrun" --nnodes=2 --nproc_per_node=1 --max-restarts=2 --rdzv-backend=c10d --rdzv-id=x \
        --rdzv-endpoint=127.0.0.1:29417 --local-addr=127.0.0.1 "$room/rank.py"
}
for share in 0 1; do
    export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=$share
    rm -f "$room/begun"
    (node) > "$room/stays" 2>&1 & stays=$!
    sleep 15
    (node) > "$room/lost" 2>&1 & lost=$!
    for _ in $(seq 600); do [ -e "$room/begun" ] || sleep 0.2; done
    [ -e "$room/begun" ]
    pkill -KILL -P $lost
    kill -KILL $lost
    (node) > "$room/back" 2>&1 & back=$!
    wait $stays && one=ended || one=failed
    wait $back && two=ended || two=failed
    echo "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=$share: the node that stayed $one, the one that came back $two"
    [ "$share $one $two" = "0 failed failed" ] || [ "$share $one $two" = "1 ended ended" ]
    grep -ho "wait timeout after.*" "$room/stays" "$room/back" | sort -u | head -2 || true
done
