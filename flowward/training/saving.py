"""Writing the checkpoints of a run, in every process: at once, or while training goes on."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from ..system import checkpoint, distributed
from ..system.checkpoint_parts import agreed
from .folder import place
from .record import Record

if TYPE_CHECKING:
    from .folder import RunFolder
    from .run import Training


class Saver:
    """Writes the checkpoints of one run.

    Where nothing is sharded, the process with the folder writes them alone. With sharded weights every process writes
    its part; then all of them have to call each method together, and an error in one of them is raised in all.
    """

    def __init__(self, run: Training, folder: RunFolder | None, sharded: bool):
        self.run, self.folder = run, folder
        self.together = sharded and run.output is not None and distributed.any_of(folder is not None)
        self._writing: checkpoint.Writing | None = None
        self._path = Path()
        self._aside: dist.ProcessGroup | None = None  # of the threads that write parts

    @property
    def writes(self) -> bool:
        """Whether this process takes part."""
        return self.together or (self.folder is not None and self.folder.keeps)

    def save(self, iteration: int, state: dict[str, Any]) -> None:
        """Write a checkpoint, or begin to; one that is being written is finished first.

        Raises:
            OSError: it, or the one before it, could not be written.
        """
        self.settle()
        with self._agreed():
            if self.folder:
                self.folder.ready()
        home = self.folder.path if self.folder else self.run.output
        if home is None:
            return
        self._path = place(home, iteration, state)
        if not self.run.checkpoint_async:
            with Record(home).checkpointing():
                checkpoint.save(self._path, state)
            self._thin()
            return
        if self.together and self._aside is None and dist.is_initialized():
            self._aside = dist.new_group(backend="gloo", timeout=distributed.LONG)
        with Record(home).checkpointing():
            self._writing = checkpoint.begin(self._path, state, self._aside)

    def settle(self, wait: bool = True) -> None:
        """Finish the checkpoint that is being written, if there is one; without `wait` only if all have written it.

        Raises:
            OSError: it could not be written.
        """
        if self._writing is None:
            return
        if not wait:
            unfinished = not self._writing.done()
            if distributed.any_of(unfinished) if self.together else unfinished:
                return
        writing, self._writing = self._writing, None
        with Record(self._path.parents[1]).checkpointing():
            writing.finish()
        self._thin()

    def _thin(self) -> None:
        """Delete old checkpoints; after it all processes find the same ones."""
        with self._agreed():
            if self.folder:
                self.folder.thin(self._path, self.run.keep)

    def _agreed(self) -> Any:
        return agreed(OSError) if self.together else nullcontext()
