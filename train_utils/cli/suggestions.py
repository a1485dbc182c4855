"""A flag that a command does not have -> the flags that were most likely meant."""

import difflib
from collections.abc import Collection, Sequence

# what other projects call it -> what it is here; of several the command's own are named
OTHER_WORDS = {
    "imgsz img-size image-size input-size size resize": ("min-size", "max-size"),
    "conf conf-thres conf-thresh confidence thresh threshold score-thr score-threshold": ("score", "box-score-thresh"),
    "iou iou-thres iou-thresh nms nms-thresh": ("box-nms-thresh",),
    "source input image images img img-dir imgs folder video file": ("img-path", "image-dir", "data-path"),
    "model weight weights weights-path weights-file checkpoint ckpt load load-from": ("weights-path", "weights"),
    "arch architecture net network body": ("backbone",),
    "pretrained pretrain": ("weights", "weights-path"),
    "data dataset-path dataset-dir data-dir data-root root ann-file annotations json coco": ("data-path", "coco-json"),
    "epoch max-epochs num-epochs n-epochs iterations iters max-iter": ("epochs",),
    "batch bs batchsize train-batch-size ims-per-batch samples-per-gpu": ("batch-size",),
    "learning-rate base-lr lr0 blr": ("lr",),
    "project name save-dir work-dir out out-dir output outdir results logdir log-dir": ("output-dir", "output"),
    "num-workers n-workers threads cpus": ("workers",),
    "gpu gpus cuda gpu-id gpu-ids": ("device",),
    "patience early-stopping": ("early-stop",),
    "fp16 half bf16 mixed-precision precision": ("amp",),
    "freeze frozen-stages": ("trainable-layers", "freeze-at"),
    "eval evaluate eval-only val test test-mode": ("test-only",),
    "class names class-names labels label-map": ("classes", "label-json-path"),
    "nc n-classes classes-count": ("num-classes",),
    "max-det max-detections topk": ("box-detections-per-img", "max-dets"),
    "resume-from resume-path continue": ("resume",),
    "optim opt": ("optimizer",),
    "scheduler sched lr-scheduler": ("lr-schedule",),
    "warmup warmup-epochs warmup-steps": ("warmup-iters",),
    "clip clip-grad grad-clip max-norm": ("clip-grad-norm",),
    "flip fliplr hflip": ("horizontal-flip",),
    "flipud vflip": ("vertical-flip",),
    "anchors anchor-scales": ("anchor-sizes",),
    "anchor-ratios ratios": ("aspect-ratios",),
    "accumulate grad-accum gradient-accumulation-steps": ("accumulate-steps",),
    "print-interval log-interval log-every": ("print-freq",),
    "save-period save-interval save-every": ("save-every-epochs",),
    "save-txt save-json export format": ("write",),
    "hide-labels hide-conf labels-off show-labels": ("captions",),
    "vid-stride stride frame-step": ("every",),
}
LIKENESS = 0.7  # of names, from which one may be a slip for another
MOST = 3  # that are named


def suggestions(word: str, known: Collection[str], training: Collection[str] = ()) -> str:
    """Returns what is said after an unknown word of a command line: which flags it may stand for; "" for none.

    word: as typed, such as --imgsz=640 or imgsz=640; known: the command's flags, with their dashes; training: those
    that only training has.
    """
    name = word.lstrip("-").partition("=")[0].lower().replace("_", "-")
    if f"--{name}" in training:
        return f"--{name} acts in training alone"
    wanted = [flag for words, flags in OTHER_WORDS.items() if name in words.split() for flag in flags]
    found = [f"--{flag}" for flag in wanted if f"--{flag}" in known]
    if not found and f"--{name}" in known:
        return f"flags begin with two dashes: --{name}"
    found = found or difflib.get_close_matches(f"--{name}", known, n=MOST, cutoff=LIKENESS)
    return f"did you mean {_either(found[:MOST])}?" if found else ""


def no_such(names: Collection[str], known: Collection[str], what: str) -> str:
    """Returns the words for names that are no options of `what`, with what they may stand for.

    known: the options that there are, as Python names.
    """
    flags = [f"--{name.replace('_', '-')}" for name in known]
    meant = (suggestions(name, flags) for name in sorted(names))
    return "; ".join([f"{', '.join(sorted(names))}: {what} has no such option", *filter(None, meant)])


def _either(flags: Sequence[str]) -> str:
    *first, last = flags
    return f"{', '.join(first)} or {last}" if first else last
