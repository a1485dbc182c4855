"""The epochs of a run: train, evaluate, write the numbers, save; the model and the data are given."""

import shlex
import sys
from contextlib import closing, nullcontext

import torch

from backbone.errors import InputError
from train_utils.checkpoints import checkpoint as checkpoints
from train_utils.checkpoints import run_folder as run_folders
from train_utils.cli.command import plain_args
from train_utils.cli.run_flags import AUGMENTATION, global_batch
from train_utils.data.loaders import EvalLoader, TrainLoader
from train_utils.logs.board import TensorBoard
from train_utils.logs.console import MetricLogger
from train_utils.logs.result_files import ResultsWriter
from train_utils.logs.step_counts import StepCounts
from train_utils.logs.step_log import StepLog
from train_utils.run import resume
from train_utils.run.ema import EMA
from train_utils.run.evaluation import evaluate
from train_utils.run.optimization import Precision, TrainState, amp_dtype, build_optimizer, build_schedule
from train_utils.run.reports import explain_lack_of_memory, explain_non_finite, image_rows, print_outcome, write_curves
from train_utils.run.state import Progress, from_checkpoint, start_at, to_checkpoint
from train_utils.run.step import NonFiniteLoss, OutOfMemory, StepHooks, settle_gradient_exchange, train_one_epoch
from transforms import build_augment

SAMPLES = 4  # validation images in TensorBoard's grid


def val_loader(args, world, data_set, config, strict=False):
    return EvalLoader(
        data_set,
        world,
        args.batch_size,
        args.workers,
        config.min_size,
        config.max_size,
        config.size_divisible,
        strict,
        config.fixed_size,
    )


def warmup_steps(args, steps_per_epoch):
    return min(1000, steps_per_epoch) if args.warmup_iters is None else args.warmup_iters


def build_state(args, world, model, steps_per_epoch):
    optimizer = build_optimizer(model, args.optimizer, args.lr, args.momentum, args.weight_decay)
    schedule = build_schedule(
        optimizer,
        total_steps=args.epochs * steps_per_epoch,
        warmup_steps=warmup_steps(args, steps_per_epoch),
        schedule=args.lr_schedule,
        milestones=[round(epoch * steps_per_epoch) for epoch in args.lr_steps],
        gamma=args.lr_gamma,
    )
    return TrainState(
        model,
        world.wrap(model),
        optimizer,
        schedule,
        Precision(world.device, amp_dtype(world.device) if args.amp else None),
        EMA(model, args.ema_decay) if args.ema else None,
        args.clip_grad_norm,
        args.seed,
    )


class Trainer:
    """The loop over epochs. Each ends with an evaluation, its numbers written, and a checkpoint."""

    def __init__(self, args, world, splits, data, model, folder, checkpoint, stop, say):
        self.args, self.world, self.splits, self.folder = args, world, splits, folder
        self.stop, self.say, self.told = stop, say, set()
        augment = build_augment(*(getattr(args, name) for name in AUGMENTATION))
        self.loader = TrainLoader(
            splits.train,
            augment,
            world,
            args.batch_size,
            args.accumulate_steps,
            args.seed,
            args.workers,
            args.aspect_ratio_group_factor,
            args.strict,
            args.repeat,
        )
        self.val_loader = val_loader(args, world, splits.val, model.config, args.strict)
        steps = self.loader.steps_per_epoch
        self.state = build_state(args, world, model, steps)
        self.progress = Progress(steps, global_batch=global_batch(args, world), world_size=world.size, data=data)
        if checkpoint:
            self.progress = from_checkpoint(checkpoint, self.state, self.progress)
            for line in resume.other_environment(checkpoint, world):
                say(line)
        elif args.start_epoch:
            start_at(args.start_epoch, self.state, self.progress)
        settle_gradient_exchange(self.state, world)
        self.board = TensorBoard(folder, self.progress.step, world.is_main)
        self.writer = ResultsWriter(folder, self.progress.epochs_done) if world.is_main else None
        self.steps = StepLog(folder, self.progress.step) if args.log_steps and world.is_main else None

    def fit(self):
        """Train and evaluate the epochs that are left."""
        args, progress = self.args, self.progress
        self.say_start()
        if self.world.is_main:
            run_folders.write_args(self.folder, plain_args(args))
        command = shlex.join(["python", *sys.argv])
        self.board.run(progress.step, command, flags=plain_args(args), model=self.state.model.config.to_dict())
        with closing(self.board):  # also of a run that stops, or fails: it logs what the last step measured
            for epoch in range(progress.epochs_done, args.epochs):
                if args.early_stop and progress.epochs_since_best >= args.early_stop:
                    self.say(f"stopping early: no better mask AP for {progress.epochs_since_best} epochs")
                    break
                averages = self.train_epoch(epoch)
                result = self.evaluate()
                names = progress.end_epoch(epoch, result.mask_ap, sum(result.losses.values()))
                # Written before the checkpoint: where a kill comes between, the resumed run replaces the lines.
                self.world.on_main(self.report, epoch, averages, result)
                self.save(*names, epoch)
                if self.world.sum(torch.tensor(float(self.stop.requested()))) > 0:
                    self.say(f"stopped after epoch {epoch}, saved; --resume auto goes on from here")
                    self.stop.leave()
        if self.steps:
            self.steps.close()
        if self.world.is_main:
            run_folders.checkpoint_path(self.folder, "previous").unlink(missing_ok=True)
            print_outcome(self.folder, progress.best_ap, self.splits.val)

    def say_start(self):
        args, dtype, steps = (self.args, self.state.precision.dtype or torch.float32, self.loader.steps_per_epoch)
        self.say(
            f"{args.optimizer}: learning rate {args.lr:g}, global batch {global_batch(args, self.world)}, "
            f"{steps} steps x {args.epochs} epochs, {warmup_steps(args, steps)} steps of warm-up, "
            f"{str(dtype).removeprefix('torch.')} on {self.world.size} x {self.world.device.type}"
        )
        if args.amp and dtype == torch.float32:
            self.say("--amp: left off, this CPU has no bfloat16 of its own and would be slower with it")
        self.say(f"run folder: {self.folder}")

    def train_epoch(self, epoch):
        """The steps of an epoch that are left; returns the mean losses of the whole epoch."""
        args, progress, every = self.args, self.progress, self.args.save_every_steps
        first, total = progress.step - epoch * self.loader.steps_per_epoch, self.loader.steps_per_epoch
        header = f"Epoch: [{epoch}]"
        log = MetricLogger(header, total, first, args.print_freq, self.world.device, self.world.is_main)
        if progress.meters:
            log.load_state_dict(progress.meters)
        hooks = StepHooks(self.stop.requested, self.may_skip, self.counts_of)
        steps = train_one_epoch(self.state, self.loader, self.world, epoch, first, hooks)
        try:
            for record in steps:
                if record.bad:
                    self.tell_bad(record.bad)
                log.step(record.own.seconds, record.own.data_seconds, record.losses, record.lr)
                self.board.step(record.step, record.losses, record.lr, record.own.measures)
                progress.end_step(record)
                self.tell_skipped(record.own.skipped_files)
                if args.log_steps:
                    self.log_step(record)
                # The last step is saved before the evaluation, so that a kill within that loses nothing.
                if log.done == total or record.stop or (every and progress.step % every == 0):
                    progress.meters = log.state_dict()
                    self.save(epoch)
                if record.stop:
                    self.say(f"stopped after step {progress.step}, saved; --resume auto goes on from here")
                    self.stop.leave()
        except NonFiniteLoss as error:
            raise self.explained(error) from error
        except OutOfMemory as error:
            raise explain_lack_of_memory(error, self.splits.train) from error
        finally:
            log.close()
        if not log.averages():
            raise InputError("no training image could be read, or no loss was finite; see the lines above")
        return log.averages()

    def counts_of(self, step):
        """What TensorBoard shows beside the losses is counted every --print-freq steps: on a GPU it costs time."""
        return StepCounts() if self.world.is_main and step % self.args.print_freq == 0 else None

    def may_skip(self):
        """Whether one more step with a loss that is not finite is skipped."""
        return self.progress.bad_batches < self.args.skip_bad_batches

    def explained(self, error):
        return explain_non_finite(error, self.folder, self.state.model, self.splits.train, self.world.rank)

    def tell_bad(self, error):
        left = f"{self.progress.bad_batches + 1} of {self.args.skip_bad_batches} that --skip-bad-batches allows"
        print(f"skipped ({left}): {self.explained(error)}", file=sys.stderr, flush=True)

    def log_step(self, record):
        """A line of steps.jsonl, with the images of all ranks."""
        data = self.splits.train
        ids = self.world.gather([data.image_id(i) for i in record.own.indices])
        if self.steps:
            self.steps.write(record.step, lr=record.lr, losses=record.losses, image_ids=sum(ids, []))

    def evaluate(self):
        """The validation images through the averaged weights where there are any. The step is saved by now."""
        model, ema = self.state.model, self.state.ema
        with self.stop.at_once(), ema.applied(model) if ema else nullcontext():
            self.world.broadcast_buffers(model)
            return evaluate(model, self.val_loader, self.splits.val, self.world, keep_samples=SAMPLES)

    def report(self, epoch, averages, result):
        """Tell and write an epoch's numbers."""
        stats = {iou_type: numbers.stats for iou_type, numbers in result.stats.items()}
        box, mask, val_loss = stats["bbox"], stats["segm"], sum(result.losses.values())
        self.say(
            f"Test: [{epoch}]  box AP: {box[0]:.4f}  AP50: {box[1]:.4f}  mask AP: {mask[0]:.4f}  "
            f"AP50: {mask[1]:.4f}  loss: {val_loss:.4f}  time: {result.seconds:.1f}"
        )
        skipped = self.progress.skipped, len(result.found.skipped)
        if self.progress.overflows:
            self.say(f"float16 overflows: {self.progress.overflows} steps left out so far, the scale was lowered")
        if any(skipped):
            self.tell_skipped(result.found.skipped)
            self.say(f"unreadable images left out: {skipped[0]} in training so far, {skipped[1]} in validation")
        loss, lr = averages["loss"], self.progress.curve[-1][1]
        more = {"train_losses": averages, "val_losses": result.losses, "seconds": result.seconds}
        self.writer.write(epoch, stats, loss, lr, **more)
        per_class = {iou_type: numbers.per_class for iou_type, numbers in result.stats.items()}
        self.board.epoch(self.progress.step, stats, result.losses, per_class)
        self.board.images(self.progress.step, image_rows(result.samples, self.splits.label_map))
        write_curves(self.folder, self.writer, self.progress.curve, self.loader.steps_per_epoch, self.about())

    def about(self):
        """A line on the run for its curves."""
        args, config, train = self.args, self.state.model.config, self.splits.train
        return (
            f"{self.folder.resolve().name}: {config.backbone} {config.variant}, {len(train)} training and "
            f"{len(self.splits.val)} validation images, {len(train.label_map)} class(es), "
            f"{global_batch(args, self.world)} images a step, {args.optimizer}, rate {args.lr:g}"
        )

    def tell_skipped(self, files):
        """Name each unreadable image once."""
        for name in files:
            if name not in self.told:
                print(f"skipped: {name}", file=sys.stderr, flush=True)
        self.told.update(files)

    def save(self, *names):
        """One checkpoint as model_{name}.pth for each name, the last of which is its epoch."""
        self.world.broadcast_buffers(self.state.model)
        self.world.on_main(self._write_checkpoint, list(names))

    def _write_checkpoint(self, names):
        *others, path, previous = (run_folders.checkpoint_path(self.folder, name) for name in [*names, "previous"])
        state = to_checkpoint(
            self.state,
            self.progress,
            names,
            self.splits.label_map,
            plain_args(self.args),
            resume.environment(self.world),
        )
        if path.exists():  # what it replaces stays, in case the new one's bits rot
            checkpoints.copy_checkpoint(path, previous)
        checkpoints.save_checkpoint(path, state)
        for other in others:  # after a kill here the resumed run goes on with this (run_folder.complete_names)
            checkpoints.copy_checkpoint(path, other)
        run_folders.prune(self.folder, self.args.keep, self.args.save_every_epochs)
