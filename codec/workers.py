"""Loading processes that outlive the signals which stop a training, and no longer than the program."""

import atexit
import errno
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

NAMES = "SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"
STOPPING = tuple(getattr(signal, name) for name in NAMES if hasattr(signal, name))
LIMIT = 600  # seconds that one batch may take
TOO_SMALL = (
    "shared memory is too small: start the container with --shm-size=1g, or load in one process "
    "(data.num_workers=0 to train, --workers 0 to encode)"
)


class WorkerLoader(DataLoader):
    """A `DataLoader` whose workers leave it to the main process to answer the signals that stop a run.

    These reach all processes of a job; a worker that dies of them takes the training along. Batches come
    through pipes: in shared memory, which containers have little of, one that finds no room is lost, and
    waited for without end.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        ending = multiprocessing.RawValue("b", 0)
        atexit.register(setattr, ending, "value", 1)
        limit = LIMIT if options.get("num_workers") else 0
        prepare = partial(prepare_worker, ending)
        super().__init__(*arguments, worker_init_fn=prepare, timeout=limit, **options)

    def __iter__(self) -> Any:
        """Start the workers, or ask those that run for the next batches."""
        try:
            with held_signals():
                return super().__iter__()
        except OSError as error:
            if error.errno != errno.ENOSPC:  # of the semaphores between processes
                raise
            raise ChildProcessError(f"loading processes cannot start: {TOO_SMALL}") from error


@contextmanager
def held_signals() -> Iterator[None]:
    """Hold back the signals that stop a run, from this thread and the processes that it starts meanwhile."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows, where a job has no signals to send
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def prepare_worker(ending: Any, worker: int) -> None:
    """Set up a loading process: one thread; no signal to stop ends it before the program is `ending`."""
    torch.set_num_threads(1)
    ForkingPickler.register(Tensor, by_value)
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0) if ending.value else None)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()


def end_with(parent: int) -> None:
    """End this process soon after its parent, which SIGKILL may end at any time.

    torch's own watch waits for the queue first: with a full pipe it never ends, and locks stay held.
    """
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def by_value(tensor: Tensor) -> tuple[Callable[..., Tensor], tuple[Any, ...]]:
    """Pickle a tensor with its content, instead of a place in shared memory."""
    return torch.from_numpy, (tensor.numpy(),)


@contextmanager
def named_losses() -> Iterator[None]:
    """Turn torch's errors about loading processes that died or hang into a `ChildProcessError` in words."""
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader "):
            raise
        reason = f"{error} {error.__cause__ or ''}".replace("\n", " ")  # the cause names the signal
        cause = TOO_SMALL if "Bus error" in reason else "is the memory full, or a disk away?"
        raise ChildProcessError(f"a loading process is lost ({reason.strip()}): {cause}") from error
