"""Several processes, on one machine or on many, train one model: `torchrun --nproc-per-node=2 SCRIPT.py`.

Each of them runs the whole script from the same seed, so all hold the same weights. Of a batch, which follows
from seed and step, a process takes each n-th sample (`share`), and the gradients are averaged before a step.
The mean over processes of means over as many samples is the mean over all, so most losses need nothing else.
What is more than a mean of samples sees the others too, so that many processes do what one does:

- Batch norm takes its statistics over all processes; dropout draws for the whole batch, and keeps its part.
- A loss that is no mean itself, but a function of one, takes that by `mean`.
- A group of g in the minibatch standard deviation is of samples N/g apart. With each n-th sample of N, a
  multiple of gn, groups fall to one process whole, as those of one process: nothing is exchanged.
- An ensemble is shared out by models (`loss_of_each`): a step along the longest text takes as long for half
  of the texts (LSTM: .71 of the time, RNN: .91).
- Evaluations while it trains are shared out by images (`in_shares`). That at the end, whose images
  become figures, is the first one's alone.

The loop averages gradients itself. DistributedDataParallel hooks into one module's `forward`; these losses
call a discriminator several times, by its parts, with a gradient of a gradient (R1), and frozen in between.
What it would hide behind the backward pass is the column `exchange` of tests/bench_processes.py. Nothing is
pickled: what is exchanged is numbers and JSON.

Without torchrun there is one process, no group, and every function gives back what it was given.
"""

import atexit
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.modules.batchnorm import _BatchNorm

from common import cli
from common.cli import UserError, is_first, rank, size

T = TypeVar("T")
PATIENCE = timedelta(days=7)  # with the first process, which evaluates; that one is gone shows at once
_alone = False  # whether this process computes what belongs to no other
_together = False  # whether all processes are in the same evaluation


class ProcessLost(UserError):
    """Another process of this run has ended."""

    exit_code = 1  # none of the user's making


@cache
def _join() -> None:
    """Meets the other processes, once. From then on it is the first one to fail that says why."""
    store, number, count = next(rendezvous("env://"))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=number, world_size=count, timeout=PATIENCE)

    def is_first_to_speak() -> bool:
        try:
            return store.add("spoken", 1) == 1
        except RuntimeError:  # the machine that counts is lost, too
            return is_first_here()

    cli.may_speak = is_first_to_speak
    # while Python is still there: threads of gloo that outlive it abort (PyTorch's pull request 179291)
    atexit.register(dist.destroy_process_group)


def is_first_here() -> bool:
    """Whether this is the first process on its machine."""
    return int(os.environ.get("LOCAL_RANK", 0)) == 0


@contextmanager
def _exchange() -> Iterator[None]:
    """Within it processes exchange something.

    Raises:
        ProcessLost: one of them is gone.
    """
    _join()
    try:
        yield
    except RuntimeError:
        atexit.unregister(dist.destroy_process_group)  # which may wait for the one that is lost
        lost = "another process of this run was lost, perhaps killed for memory"
        raise ProcessLost(f"{lost}; --resume goes on from the last checkpoint, with any number") from None


# ------------------------------------------------------------------------------------- a step of many


def share(batch: Any) -> Any:
    """This process' samples of a batch: of all tensors in tuples and dicts. A list, which has an item for
    each model of an ensemble, stays whole.

    Raises:
        UserError: the processes cannot have equally many.
    """
    if size() == 1:
        return batch
    if isinstance(batch, Tensor):
        check_share(len(batch))
        return batch[rank() :: size()]
    if isinstance(batch, dict):
        return {name: share(value) for name, value in batch.items()}
    return tuple(map(share, batch)) if isinstance(batch, tuple) else batch


def check_share(count: int, group: int = 1) -> None:
    """Refuses, by a UserError, a batch of `count` samples of which processes cannot have whole groups."""
    if count % (group * size()):
        groups = f" in groups of {group}" if group > 1 else ""
        counts = ", ".join(str(n) for n in range(1, count + 1) if count % (group * n) == 0)
        raise UserError(f"a batch of {count}{groups} cannot be shared by {size()} processes; start {counts}")


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replaces the gradients by their means over processes; one that is missing counts as 0."""
    if size() == 1:
        return
    gradients = []
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        gradients.append(parameter.grad)
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    with _exchange():
        dist.all_reduce(flat)
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient) / size())


class _Mean(torch.autograd.Function):
    """Where gradients are averaged over processes, that of a mean over processes is the same mean."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone(memory_format=torch.contiguous_format)
        with _exchange():
            dist.all_reduce(x)
        return x / size()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return _Mean.apply(*gradients)


def mean(x: Tensor) -> Tensor:
    """The mean over processes of `x`, of the same shape in each; it can be differentiated, also twice."""
    return x if size() == 1 else _Mean.apply(x)


def loss_of_each(
    models: Iterable[nn.Module],
    batches: Iterable[tuple[Any, Tensor]],
    loss: Callable[[nn.Module, Any, Tensor], Tensor],
    otherwise: Callable[..., object],
) -> dict[str, Tensor]:
    """The loss of each model of an ensemble, `model 1` and so on, on a whole batch of its own.

    Of several processes each computes those of some models, `loss(model, inputs, labels)`. For the others it
    calls `otherwise(model, *inputs)`, which draws the random numbers that `loss` would have drawn. The means
    of the results over processes are the losses.
    """
    global _alone
    losses = {}
    _alone = size() > 1
    try:
        for number, (model, (inputs, labels)) in enumerate(zip(models, batches, strict=True), 1):
            if number % size() == rank():
                losses[f"model {number}"] = size() * loss(model, inputs, labels)
            else:
                otherwise(model, *inputs)
                losses[f"model {number}"] = torch.zeros((), requires_grad=True)  # it may be left without any
    finally:
        _alone = False
    return losses


def convert(module: nn.Module) -> None:
    """Lets batch norm, dropout and what goes by an image's `place` in `module` be those of the whole batch;
    names of weights stay."""
    for layer in module.modules() if size() > 1 else ():
        if isinstance(layer, _BatchNorm):
            layer.__class__ = BatchNorm
        elif isinstance(layer, nn.Dropout):
            layer.__class__ = Dropout
        elif hasattr(layer, "place"):
            layer.place = rank(), size()  # type: ignore[assignment]


class BatchNorm(_BatchNorm):
    """Batch norm of the samples of all processes, on any device: torch's own takes GPUs alone."""

    def _check_input_dim(self, input: Tensor) -> None:
        """Any is right."""

    def forward(self, x: Tensor) -> Tensor:
        """`x` [N,C,...], of as many samples in each process; returns as much."""
        if _alone or not self.training:
            return super().forward(x)
        running_mean, running_var, batches = self.buffers()
        dims, shape = [0, *range(2, x.ndim)], [1, -1] + [1] * (x.ndim - 2)
        full = x.float()
        own = full.mean(dims)  # [C]
        shift = own - running_mean  # of means that are near, so that the squares keep their digits
        variance = (full - own.view(shape)).square().mean(dims)
        shift, square = mean(torch.stack([shift, variance + shift.square()]))  # [C] each, in one exchange
        average, variance = running_mean + shift, square - shift.square()
        count = size() * x.numel() / x.shape[1]
        running_mean.lerp_(average.detach(), self.momentum or 0.0)
        running_var.lerp_(variance.detach() * count / (count - 1), self.momentum or 0.0)
        batches += 1
        x = ((full - average.view(shape)) * (variance + self.eps).rsqrt().view(shape)).to(x.dtype)
        return x if self.weight is None else x * self.weight.view(shape) + self.bias.view(shape)


class Dropout(nn.Dropout):
    """Dropout that draws for the samples of all processes, as one process would, and keeps its own."""

    def forward(self, x: Tensor) -> Tensor:
        """`x` [N,...], of as many samples in each process; returns as much."""
        if _alone or not self.training:
            return super().forward(x)
        return x * F.dropout(x.new_ones(len(x) * size(), *x.shape[1:]), self.p)[rank() :: size()]


# --------------------------------------------------------------------------------------- a run of many


def any_of(*flags: bool) -> list[bool]:
    """For each flag, whether it is true in any process."""
    if size() == 1:
        return list(flags)
    numbers = torch.tensor(flags, dtype=torch.uint8)
    with _exchange():
        dist.all_reduce(numbers, dist.ReduceOp.MAX)
    return [bool(number) for number in numbers]


@contextmanager
def together() -> Iterator[None]:
    """Within it all processes evaluate the same model: what `in_shares` computes is shared out."""
    global _together
    _together = size() > 1
    try:
        yield
    finally:
        _together = False


def in_shares(function: Callable[..., Tensor], *x: Tensor) -> Tensor:
    """`function(*x)`, which computes row by row [N,...] of [N,...], on the CPU; `together`, each process
    computes a part of the rows, and all get the whole."""
    if not _together or len(x[0]) < size():
        return function(*x)
    counts = [len(part) for part in x[0].tensor_split(size())]
    own = function(*(rows.tensor_split(size())[rank()] for rows in x))
    own = torch.cat([own, own.new_zeros(counts[0] - len(own), *own.shape[1:])])  # all of the same size
    parts = [torch.empty_like(own) for _ in counts]
    with _exchange():
        dist.all_gather(parts, own)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def on_first(function: Callable[[], T]) -> T:
    """What `function` returns, called in the first process alone, in all of them: as JSON."""
    if size() == 1:
        return function()
    result: T = json.loads(from_first(lambda: json.dumps(function(), default=float).encode()))
    return result


def from_first(function: Callable[[], bytes]) -> bytes:
    """The bytes that `function` returns, called in the first process alone, in all of them."""
    if size() == 1:
        return function()
    content = function() if is_first() else b""
    length = torch.tensor(len(content))
    with _exchange():
        dist.broadcast(length, 0)
        data = torch.from_numpy(np.frombuffer(bytearray(content or int(length)), np.uint8))
        dist.broadcast(data, 0)
    return data.numpy().tobytes()


@contextmanager
def first_alone() -> Iterator[None]:
    """Within it the first process of each machine is alone at first, as to download what others then find."""
    if not is_first_here():
        any_of(True)
    yield
    if is_first_here():
        any_of(True)
