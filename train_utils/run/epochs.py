"""The epochs of a run: train, evaluate, write the numbers, save; the model and the data are given."""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from collections.abc import Iterable
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.optim.lr_scheduler import LRScheduler

from backbone.errors import InputError
from network_files import MaskRCNN
from train_utils.checkpoints import checkpoint as checkpoints
from train_utils.checkpoints import run_folder as run_folders
from train_utils.checkpoints.data_state import State, rewritten
from train_utils.cli.console import start_of
from train_utils.data.augmentations.options import FUNCTION
from train_utils.data.augmentations.own import OwnAugmentation, name_of_function
from train_utils.data.loaders import Batch, EvalLoader, TrainLoader
from train_utils.data.objects.fitting import AUTO
from train_utils.data.opening import DataSplits
from train_utils.evaluation.advice import lines_on_fit
from train_utils.evaluation.limits import Limit, dropped_limits, record_of, smallest_scale
from train_utils.evaluation.tiled_model import TiledModel
from train_utils.io.memory import explaining_lack_of_memory
from train_utils.io.plain_text import counted, pasted, visible
from train_utils.logs.board import TensorBoard
from train_utils.logs.callbacks import Callback, EpochNumbers, StepNumbers
from train_utils.logs.console import ImageProgress, Left, MetricLogger
from train_utils.logs.result_files import ResultsWriter
from train_utils.logs.step_counts import StepCounts
from train_utils.logs.step_log import StepLog
from train_utils.processes.distributed import World
from train_utils.processes.stop_signal import StopSignal
from train_utils.run import resume
from train_utils.run.config import RunConfig
from train_utils.run.defaults import usual_rate
from train_utils.run.ema import EMA
from train_utils.run.evaluation import EvalResult, evaluate, limits_of_tiles
from train_utils.run.optimization import Precision, TrainState, amp_dtype, build_optimizer, build_schedule, why_left_off
from train_utils.run.reports import (
    PACE_STEPS,
    about_speed,
    explain_lack_of_memory,
    explain_non_finite,
    image_rows,
    print_outcome,
    resume_command,
    write_curves,
)
from train_utils.run.schedule import describe, fall_steps
from train_utils.run.state import Progress, from_checkpoint, start_at, to_checkpoint
from train_utils.run.step import (
    NonFiniteLoss,
    OutOfMemory,
    StepHooks,
    StepRecord,
    settle_gradient_exchange,
    train_one_epoch,
)
from train_utils.run.tuning.bursts import warning
from train_utils.run.tuning.rates import range_test, set_rate
from transforms import augmentation_of

SAMPLES = 4  # validation images in TensorBoard's grid


class Additions(NamedTuple):
    """What a run is given in Python beside its options.

    splits: in place of the data of a path; augment: in place of the options' augmentation; callbacks: beside
    TensorBoard.
    """

    splits: DataSplits | None = None
    augment: OwnAugmentation | None = None
    callbacks: tuple[Callback, ...] = ()


@dataclass(frozen=True)
class Run:
    """What a run is about, as it begins."""

    config: RunConfig  # resolved
    world: World
    splits: DataSplits
    data: str  # held_out.fingerprint of the training images
    states: dict[str, State]  # of the splits, as the run begins
    folder: Path | None  # None: nothing is written
    checkpoint: resume.Checkpoint | None  # that it goes on from
    additions: Additions = Additions()

    def say(self, *lines: str, **options: Any) -> None:
        """Prints, on the main process."""
        if self.world.is_main:
            print(*lines, **options)


def schedule_of(config: RunConfig, optimizer: torch.optim.Optimizer, steps_per_epoch: int) -> LRScheduler:
    """Returns the schedule of a run's rates."""
    return build_schedule(
        optimizer,
        total_steps=config.epochs * steps_per_epoch,
        warmup_steps=config.warmup_iters,
        schedule=config.lr_schedule,
        milestones=fall_steps(config, steps_per_epoch),
        gamma=config.lr_gamma,
    )


def build_state(config: RunConfig, world: World, model: MaskRCNN, steps_per_epoch: int) -> TrainState:
    """Returns the model with what trains it: optimiser, schedule, precision, average."""
    optimizer = build_optimizer(model, config.optimizer, config.lr, config.momentum, config.weight_decay)
    return TrainState(
        model,
        world.wrap(model),
        optimizer,
        schedule_of(config, optimizer, steps_per_epoch),
        Precision(world.device, amp_dtype(world.device, config.amp)),
        EMA(model, config.ema_decay) if config.ema else None,
        config.clip_grad_norm,
        config.seed,
    )


class Trainer:
    """The loop over epochs. Each ends with an evaluation, its numbers written, and a checkpoint."""

    def __init__(self, run: Run, model: MaskRCNN, stop: StopSignal) -> None:
        config, world, splits, checkpoint = run.config, run.world, run.splits, run.checkpoint
        self.run, self.config, self.world, self.splits, self.folder = run, config, world, splits, run.folder
        self.stop, self.say, self.reported = stop, run.say, set()
        self.steps_here, self.seconds_of_evaluation = 0, 0.0  # by this process; of the last one
        self.has_args = False  # whether args.json is written
        augment = run.additions.augment or augmentation_of(config, splits.train)
        self.loader = TrainLoader(splits.train, augment, world, config)
        self.val_loader = EvalLoader(splits.val, world, config, model.config)
        steps = self.loader.steps_per_epoch
        self.state = build_state(config if config.lr != AUTO else config.replaced({"lr": 1.0}), world, model, steps)
        self.global_batch = config.global_batch(world.size)
        self.progress = Progress(steps, global_batch=self.global_batch, world_size=world.size, data=run.data)
        if checkpoint:
            self.progress = from_checkpoint(checkpoint, self.state, self.progress)
            for line in resume.other_environment(checkpoint, world, config):
                self.say(line)
        elif config.start_epoch:
            start_at(config.start_epoch, self.state, self.progress)
        jitter = config.large_scale_jitter, config.jitter_scale[0], config.expand
        smallest = smallest_scale(map(tuple, splits.train.sizes.tolist()), model.config, *jitter)
        self.smallest_scale = smallest * min(1.0, config.zoom[0])
        settle_gradient_exchange(self.state, world)
        if config.lr == AUTO:
            self.choose_rate()
        self.board = TensorBoard(run.folder, self.progress.step, world.is_main)
        self.callbacks: list[Callback] = [self.board, *run.additions.callbacks] if world.is_main else []
        self.writer = ResultsWriter(run.folder, self.progress.epochs_done) if world.is_main else None
        self.steps = StepLog(run.folder, self.progress.step) if config.log_steps and world.is_main else None

    def choose_rate(self) -> None:
        """Finds the rate of --lr auto, before the first step."""
        steps = self.loader.steps_per_epoch
        try:
            rate, line = range_test(self.state, self.loader, self.world, usual_rate(self.config, self.world))
        except OutOfMemory as error:
            raise explain_lack_of_memory(error, self.splits.train) from error
        self.config = self.config.replaced({"lr": rate})
        self.run = replace(self.run, config=self.config)
        set_rate(self.state, rate)
        self.state.schedule = schedule_of(self.config, self.state.optimizer, steps)
        self.say(line)

    def fit(self) -> None:
        """Trains and evaluates the epochs that are left."""
        config, progress = self.config, self.progress
        self.say_start()
        command = shlex.join(["python", *sys.argv])
        self.board.run(progress.step, command, flags=config.to_args(), model=self.state.model.config.to_dict())
        with closing(self.board):  # also of a run that stops, or fails: it logs what the last step measured
            for epoch in range(progress.epochs_done, config.epochs):
                if self.has_stalled():
                    what = "better mask AP" if progress.best_ap >= 0 else "lower validation loss"
                    self.say(f"stopping early: no {what} for {counted(progress.epochs_since_best, 'epoch')}")
                    break
                averages = self.train_epoch(epoch)
                result = self.evaluate(epoch)
                self.seconds_of_evaluation = result.seconds
                names = progress.end_epoch(epoch, result.mask_ap, sum(result.losses.values()))
                # Written before the checkpoint: where a kill comes between, the resumed run replaces the lines.
                self.world.on_main(self.report, epoch, averages, result)
                self.save(*names, epoch)
                if self.world.sum(torch.tensor(float(self.stop.requested()))) > 0:
                    self.say(f"stopped after epoch {epoch}, saved; {self.goes_on()}")
                    self.stop.leave()
        if self.steps:
            self.steps.close()
        if self.world.is_main:
            run_folders.checkpoint_path(self.folder, "previous").unlink(missing_ok=True)
            if self.run.additions.splits is None:
                epochs, patience = 2 * config.epochs, 2 * progress.epochs_since_best
                more = f"{resume_command(self.folder, config, self.world)} --epochs {epochs} --allow-changed epochs"
                more += f" --early-stop {patience}" * self.has_stalled()
                if self.run.additions.augment is not None:  # no command has the function
                    stop = f", early_stop={patience}" * self.has_stalled()
                    more = f'maskrcnn.train(..., resume="auto", epochs={epochs}, allow_changed=["epochs"]{stop})'
                flags = config.max_dets, config.follow_links
                print_outcome(self.folder, progress.best_ap, self.splits.val, more, *flags)
            else:  # no command would find the images
                self.say(f"done: best mask AP {progress.best_ap:.4f}, in {self.folder}")

    def has_stalled(self) -> bool:
        """Returns whether --early-stop ends the run here."""
        return bool(self.config.early_stop) and self.progress.epochs_since_best >= self.config.early_stop

    def goes_on(self) -> str:
        """Returns how a run that was stopped goes on."""
        line = "--resume auto goes on from here"
        if self.run.additions.splits is not None or self.run.additions.augment is not None:
            return line  # no command would find the images, or the function
        return f"{line}: {resume_command(self.folder, self.config, self.world)}"

    def say_start(self) -> None:
        """Prints how the run goes about its steps."""
        config, dtype, steps = (self.config, self.state.precision.dtype or torch.float32, self.loader.steps_per_epoch)
        self.say(
            f"{config.optimizer}: learning rate {config.lr:g}, global batch {self.global_batch}, "
            f"{counted(steps, 'step')} x {counted(config.epochs, 'epoch')}, {describe(config, steps)}, "
            f"{str(dtype).removeprefix('torch.')} on {self.world.size} x {self.world.device.type}"
        )
        whole = self.loader.samples
        what = "images" if config.tile is None else "tiles"
        if whole > (used := steps * self.global_batch):
            self.say(f"an epoch has {used} of {whole} {what}, others each time: the rest would not fill a batch")
        if whole < self.global_batch:
            self.say(
                f"a step has {whole} {what}, all that there are, where the global batch is {self.global_batch}, which "
                "the usual --lr is for: give a smaller --batch-size or fewer --accumulate-steps"
            )
        if config.data_path is not None and self.run.additions.splits is None:
            lines = lines_on_fit(self.splits.train, self.state.model.config)
            links = ["--follow-links"] if config.follow_links else []
            check = f"{start_of('tools.check_data')} {pasted(config.data_path, *links)}"
            for line in [*lines, *[f"{check} has the numbers, and the flags that fit"][: len(lines)]]:
                self.say(visible(line))
        if config.amp and dtype == torch.float32:
            self.say(f"--amp: left off, {why_left_off()}")
        self.say(visible(f"run folder: {self.folder}"))

    def train_epoch(self, epoch: int) -> dict[str, float]:
        """Does the steps of an epoch that are left; returns the mean losses of the whole epoch."""
        config, progress, every = self.config, self.progress, self.config.save_every_steps
        first, total = progress.step - epoch * self.loader.steps_per_epoch, self.loader.steps_per_epoch
        header = f"Epoch: [{epoch}]"
        after = config.epochs - epoch - 1
        log = MetricLogger(header, total, first, config.print_freq, self.world.device, self.world.is_main)
        log.left = Left(after * total, (after + 1) * self.seconds_of_evaluation)
        if progress.meters:
            log.load_state_dict(progress.meters)
        hooks = StepHooks(self.stop.requested, self.may_skip, self.counts_of)
        dropped: Counter[str] = Counter()
        steps = train_one_epoch(self.state, self.loader, self.world, epoch, first, hooks)
        try:
            for record in steps:
                if record.bad:
                    self.report_bad(record.bad)
                log.step(record.own.seconds, record.own.data_seconds, record.losses, record.lr)
                self.tell(StepNumbers(epoch, record.step, record.losses, record.lr, record.own.measures))
                progress.end_step(record)
                self.say_speed(log)
                self.report_skipped(record.own.skipped_files)
                self.report_burst()
                dropped += record.own.dropped
                if config.log_steps:
                    self.log_step(record)
                # The last step is saved before the evaluation, so that a kill within that loses nothing.
                if log.done == total or record.stop or (every and progress.step % every == 0):
                    progress.meters = log.state_dict()
                    self.save(epoch)
                if record.stop:
                    self.say(f"stopped after step {progress.step}, saved; {self.goes_on()}")
                    self.stop.leave()
        except NonFiniteLoss as error:
            raise self.explained(error) from error
        except OutOfMemory as error:
            raise explain_lack_of_memory(error, self.splits.train) from error
        finally:
            log.close()
        whole = sum(self.world.gather(dropped), Counter())
        self.say_limits(dropped_limits(whole), "train: ")
        if not log.averages():
            raise InputError("no training image could be read, or no loss was finite; see the lines above")
        return log.averages()

    def say_speed(self, log: MetricLogger) -> None:
        """Prints, once a process, how long the run takes."""
        self.steps_here += 1
        if self.steps_here == PACE_STEPS:
            left = self.config.epochs * self.loader.steps_per_epoch - self.progress.step
            model, device = self.state.model, self.world.device
            for line in about_speed(log.time.median, left, self.config, model, device):
                log.say(line)

    def counts_of(self, step: int) -> StepCounts | None:
        """Returns the recorder of a step, every --print-freq steps: on a GPU it costs time."""
        return StepCounts() if self.world.is_main and step % self.config.print_freq == 0 else None

    def may_skip(self) -> bool:
        """Returns whether one more step with a loss that is not finite is skipped."""
        return self.progress.bad_batches < self.config.skip_bad_batches

    def explained(self, error: NonFiniteLoss) -> InputError:
        """Returns the error with what it was about, the batch being saved."""
        return explain_non_finite(error, self.folder, self.state.model, self.splits.train, self.world.rank)

    def report_burst(self) -> None:
        """Prints once that the loss rises in the first steps."""
        line = warning(self.progress.curve) if "burst" not in self.reported else None
        if line:
            self.reported.add("burst")
            self.say(line)

    def report_bad(self, error: NonFiniteLoss) -> None:
        """Prints that a step was skipped, and why."""
        left = f"{self.progress.bad_batches + 1} of {self.config.skip_bad_batches} that --skip-bad-batches allows"
        print(visible(f"skipped ({left}): {self.explained(error)}"), file=sys.stderr, flush=True)

    def log_step(self, record: StepRecord) -> None:
        """Writes a line of steps.jsonl, with the images of all ranks."""
        data = self.splits.train
        ids = self.world.gather([data.image_id(i) for i in record.own.indices])
        if self.steps:
            self.steps.write(record.step, lr=record.lr, losses=record.losses, image_ids=sum(ids, []))

    def evaluate(self, epoch: int) -> EvalResult:
        """Returns the numbers of the validation images; the weights are the averaged ones where there are any."""
        model, ema = self.state.model, self.state.ema
        # the step is saved by now
        shown = ImageProgress(f"Test: [{epoch}]", self.val_loader.images, self.world.is_main)
        with closing(shown), self.stop.at_once(), ema.applied(model) if ema else nullcontext():
            self.world.broadcast_buffers(model)

            def one_more(batch: Batch) -> None:
                self.stop.leave_if_requested()
                shown.add(len(batch.images) + len(batch.skipped))

            seen = model if self.config.tiling is None else TiledModel(model, self.config.tiling, losses=True)
            where, max_dets = (self.val_loader, self.splits.val, self.world), self.config.max_dets
            result = evaluate(seen, *where, SAMPLES, one_more, max_dets)
            if isinstance(seen, TiledModel):
                result.limits.extend(limits_of_tiles(seen, self.world))
            return result

    def report(self, epoch: int, averages: dict[str, float], result: EvalResult) -> None:
        """Prints and writes an epoch's numbers."""
        stats = {iou_type: numbers.stats for iou_type, numbers in result.stats.items()}
        box, mask, val_loss = stats["bbox"], stats["segm"], sum(result.losses.values())
        self.say(
            f"Test: [{epoch}]  box AP: {box[0]:.4f}  AP50: {box[1]:.4f}  mask AP: {mask[0]:.4f}  "
            f"AP50: {mask[1]:.4f}  loss: {val_loss:.4f}  time: {result.seconds:.1f}"
        )
        self.say_limits(result.limits, "val: ")
        self.say_rewritten()
        skipped = self.progress.skipped, len(result.found.skipped)
        if self.progress.overflows:
            self.say(
                f"float16 overflows: {counted(self.progress.overflows, 'step')} left out so far, the scale was lowered"
            )
        if any(skipped):
            self.report_skipped(result.found.skipped)
            self.say(f"unreadable images left out: {skipped[0]} in training so far, {skipped[1]} in validation")
        loss, lr = averages["loss"], self.progress.curve[-1][1]
        more = {"train_losses": averages, "val_losses": result.losses, "seconds": result.seconds}
        more["limits"] = record_of(result.limits)
        self.writer.write(epoch, stats, loss, lr, **more)
        per_class = {iou_type: numbers.per_class for iou_type, numbers in result.stats.items()}
        row = self.writer.rows()[-1]
        self.tell(EpochNumbers(epoch, self.progress.step, stats, result.losses, per_class, row))
        with explaining_lack_of_memory("drawing for TensorBoard", "free some memory, then --resume auto"):
            rows = image_rows(result.samples, self.splits.label_map, self.state.model.config.geometry)
            self.board.images(self.progress.step, rows)
        progress, steps = self.progress, self.loader.steps_per_epoch
        write_curves(self.folder, self.writer, progress.curve, progress.curve_stride, steps, self.about())

    def tell(self, numbers: StepNumbers | EpochNumbers) -> None:
        """Tells the callbacks of a step or an epoch, on the main process; with the first the folder holds a run."""
        if self.world.is_main and not self.has_args:
            function = name_of_function(self.run.additions.augment)
            said = {} if function is None else {"augment": f"{function} (a Python function)"}
            run_folders.write_args(self.folder, {**self.config.to_args(), **said})
            self.has_args = True
        for callback in self.callbacks:
            callback.on_step(numbers) if isinstance(numbers, StepNumbers) else callback.on_epoch(numbers)

    def say_limits(self, limits: list[Limit], of: str) -> None:
        """Prints limits that were met, each once a run; every epoch's are in the json."""
        for limit in limits:
            if of + limit.name not in self.reported:
                self.say(of + limit.line)
                self.reported.add(of + limit.name)

    def say_rewritten(self) -> None:
        """Prints that files of the data have changed since the run began."""
        for role, part in self.splits.by_role().items():
            part = part.whole
            changed = rewritten(part, self.run.states[role])
            line = f"{role}: files of {counted(int(changed.sum()), 'image')} have been changed since the run began"
            if changed.any() and line not in self.reported:
                self.reported.add(line)
                such = part.file_name(int(changed.argmax()))
                self.say(visible(f"{line}, such as {such}: the numbers are of both; put the files back"))

    def about(self) -> str:
        """Returns a line on the run for its curves."""
        config, model, train = self.config, self.state.model.config, self.splits.train
        return (
            f"{self.folder.resolve().name}: {model.backbone} {model.variant}, {len(train.whole)} training and "
            f"{counted(len(self.splits.val), 'validation image')}, {counted(len(train.label_map), 'class')}, "
            f"{counted(self.global_batch, 'image')} a step, {config.optimizer}, rate {config.lr:g}"
        )

    def report_skipped(self, files: Iterable[str]) -> None:
        """Names each unreadable image once."""
        for name in files:
            if name not in self.reported:
                print(visible(f"skipped: {name}"), file=sys.stderr, flush=True)
        self.reported.update(files)

    def save(self, *names: str | int) -> None:
        """Writes one checkpoint as model_{name}.pth for each name, the last of which is its epoch."""
        self.world.broadcast_buffers(self.state.model)
        self.world.on_main(self._write_checkpoint, list(names))

    def _write_checkpoint(self, names: list[str | int]) -> None:
        *others, path, previous = (run_folders.checkpoint_path(self.folder, name) for name in [*names, "previous"])
        state = to_checkpoint(
            self.state,
            self.progress,
            names,
            self.splits.label_map,
            self.config.to_args(),
            resume.environment(self.world, self.config),
        )
        state["smallest_scale"] = self.smallest_scale  # for prediction
        state["data"] = self.run.states
        state[FUNCTION] = name_of_function(self.run.additions.augment)
        if path.exists():  # what it replaces stays, in case the new one's bits rot
            checkpoints.copy_checkpoint(path, previous)
        checkpoints.save_checkpoint(path, state)
        for other in others:  # after a kill here the resumed run goes on with this (run_folder.complete_names)
            checkpoints.copy_checkpoint(path, other)
        run_folders.prune(self.folder, self.config.keep, self.config.save_every_epochs)
