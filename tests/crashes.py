"""What a power cut can leave: every prefix of our file calls, with what was not synced dropped or torn.

After ALICE (Pillai et al., OSDI 2014). The model: a file's content is on disk once the file was synced,
before that it may be there, half there, or not; a name (made, moved, removed) is on disk once its folder was
synced, before that all the folder's names may be as they were, or as they are. What was never synced and
was not written by calls of ours is not there.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Change = Callable[[dict[str, Any]], None]
Tree = dict[str, Any]
"""A path to its File, or to None for a folder."""


@dataclass(eq=False)
class File:
    """One file: its content now, and what is on disk."""

    content: bytes = b""
    synced: bytes | None = None

    def after_crash(self, share: float) -> bytes:
        """Return what is read after a crash; of what was not synced, this share from the beginning."""
        return self.content[: int(len(self.content) * share)] if self.synced is None else self.synced


@dataclass
class PowerCuts:
    """A deed for tests.disk: does every call, and keeps each state that a power cut after it can leave."""

    root: Path
    states: list[dict[str, bytes | None]] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    """For each state the newest training step whose checkpoint was on disk for good."""

    def __post_init__(self) -> None:
        self._names: Tree = {}
        self._durable: Tree = {}
        self._pending: list[tuple[set[str], Change]] = []
        self._open: dict[int, str] = {}
        self._seen: set[tuple[Any, ...]] = set()
        for path in sorted(self.root.rglob("*")):
            content = path.read_bytes() if path.is_file() else None
            self._names[str(path)] = None if content is None else File(content, content)
        self._durable = dict(self._names)

    def __call__(self, n: int, name: str, call: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        """Do a call and follow what it changed."""
        result = call(*arguments)
        paths = [os.path.abspath(one) for one in arguments if isinstance(one, Path)]
        if name == "open":
            self._open[result] = paths[0]
            if arguments[1] & os.O_CREAT:
                self._change(paths, _setting(paths[0], File()))
        elif name == "write":
            self._names[self._open[arguments[0]]].content += bytes(arguments[1])[:result]
        elif name == "fsync":
            self._sync(self._open[arguments[0]])
        elif name == "mkdir":
            self._change(paths, _setting(paths[0], None))
        elif name == "replace":
            self._change(paths, _moving(*paths))
        else:
            self._change(paths, _removing(paths[0]))
        self._keep_states()
        return result

    def _change(self, paths: list[str], change: Change) -> None:
        change(self._names)
        self._pending.append(({os.path.dirname(path) for path in paths}, change))

    def _sync(self, path: str) -> None:
        if not os.path.isdir(path):
            if path not in self._names:  # written by a library: its first sync makes it known
                self._change([path], _setting(path, File()))
                self._names[path].content = Path(path).read_bytes()
            self._names[path].synced = self._names[path].content
            return
        for folders, change in self._pending:
            if path in folders:
                change(self._durable)
        self._pending = [pending for pending in self._pending if path not in pending[0]]

    def _keep_states(self) -> None:
        steps = [int(name[-21:-12]) for name in self._durable if "/step-" in name and "/." not in name]
        for share in (0.0, 0.5, 1.0):
            for n_pending in (0, len(self._pending)):
                tree = dict(self._durable)
                for _, change in self._pending[:n_pending]:
                    change(tree)
                state = {p: None if f is None else f.after_crash(share) for p, f in tree.items()}
                key = tuple(sorted((p, hash(content)) for p, content in state.items()))
                if key not in self._seen:
                    self._seen.add(key)
                    self.states.append(state)
                    self.marks.append(max(steps, default=-1))

    def restore(self, index: int, to: Path) -> None:
        """Write a state below another folder."""
        for path, content in sorted(self.states[index].items()):
            target = to / os.path.relpath(path, self.root)
            if content is None:
                target.mkdir(parents=True, exist_ok=True)
            elif target.parent.is_dir():  # else the folder's own name was lost, and all in it
                target.write_bytes(content)


def _setting(path: str, value: File | None) -> Change:
    return lambda tree: tree.__setitem__(path, value)


def _moving(source: str, target: str) -> Change:
    def move(tree: Tree) -> None:
        for path in [path for path in tree if path == source or path.startswith(source + "/")]:
            tree[target + path[len(source) :]] = tree.pop(path)

    return move


def _removing(path: str) -> Change:
    return lambda tree: tree.pop(path, None)
