"""`steer data weak` and the losses in `steer data show`, over HTTP."""

import json

from control_plane.core.model.data import MIXTURE
from tests.cli.conftest import Steer, measure
from tests.core import examples
from tests.gateway.rig import KNOBS, RUN, LiveGateway

CONFIG = """
sources:
  web: {format: text, path: "web.txt", held_out: 0.1}
  fresh: {format: jsonl, live: true, held_out: 0.1, fields: {text: {type: text}}}
"""


def begin(live: LiveGateway, held_out: int | None = 10) -> None:
    """Ranks that draw from two sources; which hold this many records out."""
    live.runs.files(RUN).config.write_text(CONFIG)
    own = {} if held_out is None else {"held_out": held_out}
    state = {"weight": 1.0, "share": 0.5, "records": 90} | own
    start = examples.start(1000, knobs=KNOBS, facts={"model": "tiny", MIXTURE: {"web": state, "fresh": state}})
    live.call(live.server.start_generation(start))


def test_sources_are_ranked_by_what_they_hold_out(idle_gateway: LiveGateway, steer: Steer) -> None:
    begin(idle_gateway)
    assert steer("data", "weak", RUN).stdout.startswith(f"{RUN} has not been evaluated: `steer evaluate {RUN}`")
    measured = {
        "eval_loss/web": {10: 3.0, 20: 2.5},
        "eval_loss/fresh": {10: 5.0, 20: 5.01},
        "source_loss/web": {20: 2.25},
    }
    measured |= {f"eval_error/{name}": {10: 0.1, 20: 0.1} for name in ("web", "fresh")}
    for name, values in measured.items():
        idle_gateway.call(measure(idle_gateway.server, 2, values, name))
    head, first, second, last = steer("data", "weak", RUN).stdout.splitlines()
    assert head.split() == ["SOURCE", "HELD-OUT", "LOSS", "CHANGE", "STEP", "EVALUATIONS"]
    assert first.split() == ["fresh", "5.01", "+-0.1", "+0.01", "(noise)", "20", "2"]
    assert second.split() == ["web", "2.5", "+-0.1", "-0.5", "20", "2"]
    assert last == "weakest: fresh, above web"
    told = json.loads(steer("data", "weak", RUN, "--json").stdout)
    assert [(one["source"], one["loss"], one["error"]) for one in told] == [("fresh", 5.01, 0.1), ("web", 2.5, 0.1)]
    rows = steer("data", "show", RUN).stdout.splitlines()
    assert rows[0].split()[-3:] == ["LOSS", "HELD", "OUT"]
    assert next(row.split()[-3:] for row in rows if row.startswith("web")) == ["2.25", "2.5", "+-0.1"]


def test_a_run_that_holds_nothing_out_says_how_to(idle_gateway: LiveGateway, steer: Steer) -> None:
    begin(idle_gateway, held_out=None)
    assert "give one `held_out: 0.05` in the config" in steer("data", "weak", RUN).stdout
