"""Index of the commands of a journal, to complete later entries about the same command."""

from uuid import UUID

from control_plane.core.model.records import ABOUT_A_COMMAND, CommandAccepted, CommandSummary, Entry


class CommandIndex:
    """Index of command summaries, filled from entries in order, to complete later entries about the same command."""

    def __init__(self) -> None:
        """Start empty."""
        self._known = dict[UUID, CommandSummary]()

    def complete(self, entry: Entry) -> Entry:
        """Return the entry with `about` filled in, if its command is known."""
        record = entry.record
        if isinstance(record, CommandAccepted):
            self._known[record.command.uuid] = CommandSummary.of(record.command)
        elif isinstance(record, ABOUT_A_COMMAND) and entry.about is None and record.uuid in self._known:
            return entry.model_copy(update={"about": self._known[record.uuid]})
        return entry
