"""Training steps of this project and of torchvision's Mask R-CNN, by turns, on the same batches.

    python -m benchmarks.training_step --data-path DATA --weights resnet18.pth --steps 20

Prints the median seconds of a step on each side and their ratio. Both start from the same ImageNet weights
(frozen norm, three trained stages), see the same pictures in the same order, and draw their own samples.
"""

import argparse
import statistics
import time

import torch
from torchvision.models.detection import MaskRCNN as TorchvisionMaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.rpn import AnchorGenerator

from network_files import create_model, load_weights
from train_utils.data_sets import TrainLoader, open_data_set
from train_utils.distributed import World
from transforms import build_augment


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-path", required=True)
    parser.add_argument("--weights", required=True, help="an ImageNet file, whole or partial")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--size", type=int, default=256, help="shorter and longer side (default: 256)")
    parser.add_argument("--anchor-sizes", type=int, nargs=5, default=[8, 16, 32, 64, 128])
    parser.add_argument("--rois", type=int, default=128, help="RoIs sampled per picture (default: 128)")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20, help="measured steps of each side (default: 20)")
    return parser.parse_args()


def build_ours(args, num_classes):
    model = create_model(num_classes, args.backbone, min_size=args.size, max_size=args.size,
                         anchor_sizes=args.anchor_sizes, box_batch_size_per_image=args.rois)
    load_weights(model, args.weights)
    return model.train()


def build_theirs(args, num_classes):
    backbone = resnet_fpn_backbone(backbone_name=args.backbone, weights=None, trainable_layers=3)
    backbone.body.load_state_dict(torch.load(args.weights, weights_only=True), strict=False)
    anchors = AnchorGenerator(tuple((s,) for s in args.anchor_sizes), ((0.5, 1.0, 2.0),) * 5)
    return TorchvisionMaskRCNN(backbone, num_classes, min_size=args.size, max_size=args.size,
                               rpn_anchor_generator=anchors, box_batch_size_per_image=args.rois).train()


def timed_step(model, optimizer, images, targets) -> tuple[float, float]:
    """Seconds and loss of one step."""
    start = time.perf_counter()
    loss = sum(model(images, targets).values())
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return time.perf_counter() - start, loss.item()


def main() -> None:
    args = parse_args()
    data = open_data_set(args.data_path)
    loader = TrainLoader(data.train, build_augment(0.5, 0.5), World.single(torch.device("cpu")), args.batch_size)
    num_classes = data.label_map.num_labels
    torch.manual_seed(0)
    sides = {"ours": build_ours(args, num_classes), "torchvision": build_theirs(args, num_classes)}
    optimizers = {name: torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.001, 0.9)
                  for name, model in sides.items()}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, batch {args.batch_size}, {args.size} px")
    batches = (batch for epoch in range(10**6) for batch in loader.epoch(epoch))
    for step, batch in zip(range(args.steps + 2), batches, strict=False):  # two steps to warm up
        dense = [{**t, "masks": t["masks"].to_masks()} for t in batch.targets]
        inputs = {"ours": (batch.images, batch.targets), "torchvision": ([i / 255 for i in batch.images], dense)}
        for name, model in sides.items():
            taken, loss = timed_step(model, optimizers[name], *inputs[name])
            if step >= 2:
                seconds[name].append(taken)
            print(f"step {step}: {name} {taken:.2f} s, loss {loss:.3f}", flush=True)
    ours, theirs = (statistics.median(seconds[name]) for name in ("ours", "torchvision"))
    print(f"median of {args.steps} steps: ours {ours:.2f} s, torchvision {theirs:.2f} s, ratio {ours / theirs:.2f}")


if __name__ == "__main__":
    main()
