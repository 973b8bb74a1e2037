"""`steer queue`: the runs that wait for their start, and why."""

from control_plane.cli.commands.show import AsJson, print_table
from control_plane.cli.output.printing import tell, tell_json
from control_plane.cli.select_run import connect


def queue(as_json: AsJson = False) -> None:
    """List the runs that wait for room or quota, in the order of their start, each with the reason."""
    with connect() as client:
        found = client.queue()
    if as_json:
        tell_json(found)
        return
    if not found.waiting:
        tell(f"no run waits; {found.started} started")
        return
    rows = [
        (str(each.place), each.run, each.owner, str(each.priority), each.needs, each.since, each.reason)
        for each in found.waiting
    ]
    print_table(("PLACE", "RUN", "OWNER", "PRIORITY", "NEEDS", "SINCE", "REASON"), rows)
