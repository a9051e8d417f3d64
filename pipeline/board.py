"""What several processes say, on one screen: a live line for each on a terminal, plain lines with names elsewhere."""

from __future__ import annotations

from types import TracebackType

from rich.progress import TaskID

from .progress import Message, Meter, Standing, console, progress_bar, say, warn


class Board:
    """Shows what is relayed to it (see `progress.relay`), under the name of who relayed it."""

    def __init__(self) -> None:
        self._console = console()
        self._bar = progress_bar(self._console) if self._console.is_terminal else None
        self._lines: dict[str, TaskID] = {}
        self._meters: dict[str, Meter] = {}

    def __enter__(self) -> Board:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, name: str, said: Message | Standing) -> None:
        """Show one message or standing; a message gets the name in front where it does not have it."""
        if isinstance(said, Standing):
            self._stand(name, said)
            return
        text = said.text if name in said.text else f"{name}: {said.text}"
        (warn if said.warning else say)(text)

    def remove(self, name: str) -> None:
        """Nothing more comes under this name."""
        self._meters.pop(name, None)
        if self._bar is not None and name in self._lines:
            self._bar.remove_task(self._lines.pop(name))

    def _stand(self, name: str, said: Standing) -> None:
        meter = self._meters.get(name)
        if meter is None or (meter.title, meter.total) != (said.title, said.total):
            self.remove(name)
            meter = self._meters[name] = Meter(said.title, said.total, unit=said.unit, resumed=said.resumed)
        if self._bar is None:
            meter.advance(said.done - meter.done, said.note)  # speaks now and then
            return
        meter.done = said.done
        if name not in self._lines:
            self._lines[name] = self._bar.add_task(said.title, total=said.total, completed=said.resumed, note="")
        note = f"{meter.rate:.1f} {said.unit}/s {said.note}".strip()
        self._bar.update(self._lines[name], completed=said.done, note=note)
