"""Make docs/signs.md from the catalogue, the explanations and the bounds: `python -m tests.core.health.document`."""

from collections.abc import Iterator
from typing import get_args

from control_plane.core.health.advice import EXPLANATIONS, Explanation
from control_plane.core.health.latency import LATEST
from control_plane.core.health.settings import HealthSettings
from control_plane.core.health.signs import PHASES, SIGNS, SignGroup
from control_plane.core.model.health import MAKES_SUSPECT
from tests.architecture.tree import ROOT

DOCUMENT = ROOT / "docs" / "signs.md"

HEAD = """\
# Signs, alerts and knobs

*Made by `python -m tests.core.health.document` from the data that `steer` and the console show, and checked by a test.*

A run measures **signs** (numbers, at every step or at intervals). The health monitor on rank 0 turns them into
**alerts**: kind, level, a sentence, the evidence (values, window, threshold) and often a suggested command. The same
signs give the same alerts on any machine, also after a recovery: the monitor's windows are in every checkpoint. Alerts
from timings are the exception: a repeated step takes another time.

A checkpoint that is saved while an alert about the weights is open is **suspect**; one saved before the windows are
full, or while an outlier waits for confirmation, is **unknown**; any other is **trusted**. A later alert makes suspect
what was saved at or after its onset.

Every threshold is in the config's section `health`, with defaults that keep healthy runs silent. There are none that
fit every training: raise those that disturb you.

```yaml
health:
  hook_steps: 100                       # measurements inside the model
  silent: [bad_dynamics, plateau]       # kinds that are not raised
  signs: {layers: false}                # groups that are not measured
  loss_spike: {sigmas: 8, window_steps: 256}
```
"""


def document() -> str:
    """Return the whole document."""
    return "\n".join([HEAD, *_alerts(), *_signs(), *_knobs(), *_settings()]) + "\n"


def _entry(entry: Explanation, *facts: str) -> Iterator[str]:
    yield f"### {entry.name}"
    yield ""
    yield f"**{entry.title}.** " + " ".join((*facts, entry.meaning))
    yield ""
    yield from (f"- {action}" for action in entry.actions)
    if entry.see:
        yield "- See " + ", ".join(f"`{name}`" for name in entry.see) + "."
    yield ""


def _of_topic(topic: str) -> Iterator[Explanation]:
    return (entry for entry in EXPLANATIONS.values() if entry.topic == topic)


def _alerts() -> Iterator[str]:
    yield "## Alerts"
    yield ""
    yield "*Latest*: time from the onset of a clear fault to its alert, with the default settings; tests hold it. A"
    yield "*gather* is a log interval, a *hook* is `health.hook_steps`, a *window* is that of the kind's settings."
    yield ""
    yield "| kind | latest | makes checkpoints suspect |"
    yield "|---|---|---|"
    for kind, latest in LATEST.items():
        yield f"| [{kind}](#{kind}) | {latest} | {'yes' if kind in MAKES_SUSPECT else 'no'} |"
    yield ""
    for entry in _of_topic("alert"):
        yield from _entry(entry)


def _signs() -> Iterator[str]:
    yield "## Signs"
    yield ""
    yield "`<...>` stands for a name of the run's own. NaN means that something not finite was measured. *Clock*: a"
    yield f"timing, which differs when a step is repeated. Phases: {', '.join(PHASES)}."
    yield ""
    for group in get_args(SignGroup):
        yield f"### Signs: {group}"
        yield ""
        yield "| sign | unit | measured | meaning | what people do |"
        yield "|---|---|---|---|---|"
        for sign in (sign for sign in SIGNS if sign.group == group):
            when = {"step": "every step", "gather": "log interval", "hooks": "hooks", "derived": "computed"}
            measured = when.get(sign.cadence, "evaluation") + (", clock" if sign.is_timing else "")
            yield f"| `{sign.pattern}` | {sign.unit} | {measured} | {sign.meaning} | {sign.advice} |"
        yield ""


def _knobs() -> Iterator[str]:
    yield "## Knobs"
    yield ""
    for entry in _of_topic("knob"):
        yield from _entry(entry)


def _settings() -> Iterator[str]:
    yield "## Settings"
    yield ""
    yield "| setting | default |"
    yield "|---|---|"
    for section, values in HealthSettings().model_dump(mode="json").items():
        if isinstance(values, dict):
            shown = ", ".join(f"`{name}` {value}" for name, value in values.items())
            yield f"| `health.{section}` | {shown} |"
        else:
            yield f"| `health.{section}` | {values} |"


if __name__ == "__main__":
    DOCUMENT.write_text(document(), encoding="utf-8")
