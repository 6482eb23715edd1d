"""The file that a sweep's runs are kept in: one backbone, one set of shared settings, and for each run the session that made it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from provenance import ResultError, session, settings_sha256, write_json

Entry = dict[str, Any]


class RunFile:
    """Runs by their settings, each a dataclass, read from a file if it is there and written back atomically.

    Args:
        path: of the file.
        command: that makes the whole file.
        settings: what all runs share; JSON can hold it.
        backbone: checksum of the weights that all runs start from.
        fresh: begin anew, whatever the file holds.

    Raises:
        ResultError: the file holds runs of another backbone, or with other shared settings.
    """

    def __init__(self, path: Path, command: str, settings: Mapping[str, Any], backbone: str, *, fresh: bool = False) -> None:
        self.path, self.command, self.settings, self.backbone = path, command, _as_json(settings), backbone
        self.entries: list[Entry] = []
        self.sessions: list[Entry] = []
        self._own_session: int | None = None
        self._start = time.perf_counter()
        if path.exists() and not fresh:
            found = json.loads(path.read_text(encoding="utf-8"))
            self._refuse_other(found)
            self.entries, self.sessions = found["runs"], found["sessions"]
            self._start -= found["provenance"]["seconds"]  # the time of an interrupted sweep counts

    def find(self, settings: Any) -> Entry | None:
        """The run with these settings, if it has been made."""
        wanted = _as_json(asdict(settings))
        return next((entry for entry in self.entries if all(key in entry and entry[key] == wanted[key] for key in wanted)), None)

    def add(self, settings: Any, outcome: Mapping[str, Any], device: str) -> Entry:
        """Keep a run that was just made, and say by which session."""
        if self._own_session is None:
            self.sessions.append(session(device=device))
            self._own_session = len(self.sessions) - 1
        entry = {**_as_json(asdict(settings)), **_as_json(outcome), "session": self._own_session}
        self.entries.append(entry)
        return entry

    def take_over(self, other: Path, wanted: Iterable[Any]) -> int:
        """Copy wanted runs from another file of the same backbone and settings, with their sessions; returns how many."""
        if not other.exists():
            return 0
        theirs = RunFile(other, self.command, self.settings, self.backbone)
        taken = 0
        for settings in wanted:
            entry = None if self.find(settings) else theirs.find(settings)
            if entry is not None:
                origin = {**theirs.sessions[entry["session"]], "taken_from": other.name}
                if origin not in self.sessions:
                    self.sessions.append(origin)
                self.entries.append({**entry, "session": self.sessions.index(origin)})
                taken += 1
        return taken

    def write(self, *, complete: bool, summary: Mapping[str, Any] | None = None) -> None:
        """Write the file; a kill at any moment leaves the last one, whole.

        Args:
            complete: whether it holds every run of the plan.
            summary: what the runs together say.
        """
        if not self.entries:
            return
        last = self.sessions[-1 if self._own_session is None else self._own_session]
        content = {
            "provenance": {**last, "command": self.command, "seconds": round(time.perf_counter() - self._start)},
            "backbone_sha256": self.backbone,
            "settings": self.settings,
            "settings_sha256": settings_sha256(self.settings),
            "complete": complete,
            "sessions": self.sessions,
            **({"summary": _as_json(summary)} if summary else {}),
            "runs": self.entries,
        }
        write_json(self.path, content)

    def _refuse_other(self, found: Mapping[str, Any]) -> None:
        remedy = "give --fresh to begin anew, or --out for another file"
        theirs = found.get("backbone_sha256")
        if theirs != self.backbone:
            raise ResultError(f"{self.path.name} holds runs of another backbone ({str(theirs)[:12]}, not {self.backbone[:12]}): {remedy}")
        differ = [key for key in {**found["settings"], **self.settings} if found["settings"].get(key) != self.settings.get(key)]
        if differ:
            changes = ", ".join(f"{key} {found['settings'].get(key)!r}, not {self.settings.get(key)!r}" for key in differ)
            raise ResultError(f"{self.path.name} holds runs with other settings ({changes}): {remedy}")


def _as_json(value: Mapping[str, Any]) -> Entry:
    """As it would be read back: tuples as lists."""
    found: Entry = json.loads(json.dumps(value, allow_nan=False))
    return found
