"""DataLoader whose workers ignore SIGINT and SIGTERM, so the main process can save a checkpoint first."""

import atexit
import errno
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from codec.system.sources import Mounted, mounted

NAMES = "SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"
STOPPING = tuple(getattr(signal, name) for name in NAMES if hasattr(signal, name))
LIMIT = 600  # seconds to wait for one batch
TOO_SMALL = (
    "shared memory is too small: start the container with --shm-size=1g, or load in one process "
    "(data.num_workers=0 to train, --workers 0 to encode)"
)


class WorkerLoader(DataLoader):
    """DataLoader whose workers ignore the signals that stop a run.

    A scheduler signals all processes of a job, and a worker killed by a signal would end the training.
    Batches are sent through pipes: containers have little shared memory, and a batch that does not fit into
    it would be lost and awaited forever.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        ending = multiprocessing.RawValue("b", 0)
        atexit.register(setattr, ending, "value", 1)
        limit = LIMIT if options.get("num_workers") else 0
        prepare = partial(prepare_worker, ending, mounted)
        super().__init__(*arguments, worker_init_fn=prepare, timeout=limit, **options)

    def __iter__(self) -> Any:
        """Start the workers, or reset persistent ones."""
        try:
            with held_signals():
                return super().__iter__()
        except OSError as error:
            if error.errno != errno.ENOSPC:  # no room for the semaphores between processes
                raise
            raise ChildProcessError(f"loading processes cannot start: {TOO_SMALL}") from error


@contextmanager
def held_signals() -> Iterator[None]:
    """Block the signals that stop a run, in this thread and in the processes that it starts meanwhile."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows, where a job has no signals to send
        yield
        return
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def prepare_worker(ending: Any, sources: Mapping[str, Mounted], worker: int) -> None:
    """Set up a worker: sources, one thread, no signals; SIGTERM ends it only if the program is `ending`."""
    mounted.update(sources)  # of another process, unless it was forked
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
    """Pickle a tensor by value instead of by its address in shared memory."""
    return torch.from_numpy, (tensor.numpy(),)


@contextmanager
def named_losses() -> Iterator[None]:
    """Convert torch's errors about dead or hanging workers into a `ChildProcessError` with a remedy."""
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader "):
            raise
        reason = f"{error} {error.__cause__ or ''}".replace("\n", " ")  # the cause names the signal
        cause = TOO_SMALL if "Bus error" in reason else "is the memory full, or a disk away?"
        raise ChildProcessError(f"a loading process is lost ({reason.strip()}): {cause}") from error
