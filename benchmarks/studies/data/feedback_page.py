"""Page and figure of the study of feedback on episodes: what the person wants, over the steps, by arm."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from benchmarks.catalogue import Say
from benchmarks.harness.conditions import machine, versions
from benchmarks.harness.result import Result
from benchmarks.studies.data import person
from benchmarks.studies.drawing import mean_and_range, open_pyplot
from benchmarks.studies.wilcoxon import wilcoxon

if TYPE_CHECKING:
    from benchmarks.studies.data.study_feedback import Study

NAME = "feedback-curves.svg"
SEEDS, STEPS = 5, 500
"""Seeds and steps of the whole study."""

COLORS = {"alone": "tab:gray", "scores": "tab:blue", "preferences": "tab:green"}
MEASURED = {"wanted": "what the person wants", "returns": "the game's return", "entries": "entries of disliked fields"}
WIDTH_IN, HEIGHT_IN = 9.0, 3.6


def write(path: Path, study: "Study", result: Result, pictures: Sequence[str]) -> None:
    """Write the page, in Markdown."""
    parts = [
        "# Study: feedback on episodes while a policy trains",
        "*Made by `python -m benchmarks study_feedback`; nothing on this page was written by hand.*",
        *unfinished(result.n, study),
        headline(study),
        what_was_done(study, result.n),
        *(
            f"![What the person wants, and entries of disliked fields, over the steps, by arm]({name})"
            for name in pictures
        ),
        "## At the end\n\nMean of a game over the last shown steps and the seeds; in brackets the range of the seeds.",
        ends(study),
        "## Differences\n\nTo the arm without feedback, paired by seed, with Student's 95 % intervals. p: Wilcoxon's "
        f"signed-rank test, exact, two-sided; with {result.n} seeds it cannot be below {2 / 2**result.n:.2g}.",
        differences(study),
        "## Targets\n\nSet before the first run that counts.",
        targets(result),
        LIMITS,
    ]
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


LIMITS = """## Not covered

- The person is a program with one dislike that it always has, and random errors. People change their minds, tire, and \
judge what they did not mean to.
- A grid of 25 fields, where one reward a field can say what the person dislikes. It could not say \
"not this field before that one".
- When records come in depends on the machine's speed: a repeated run has not the same weights. (A replay has: shards \
come at the recorded steps.)"""


def unfinished(n: int, study: "Study") -> list[str]:
    """Return a warning if seeds or steps are missing."""
    if n >= SEEDS and study.size.steps >= STEPS:
        return []
    return [
        f"**Unfinished: {n} of {SEEDS} seeds, {study.size.steps} of {STEPS} steps; too short for its figures to mean "
        "anything.** `python -m benchmarks study_feedback` runs the others."
    ]


def headline(study: "Study") -> str:
    """Return what feedback has changed."""
    alone = fmean(study.ends("alone"))
    parts = []
    for arm in ("scores", "preferences"):
        against = study.difference(arm)
        verdict = "better" if against.low > 0 else "worse" if against.high < 0 else "not told apart"
        parts.append(f"with {arm} {fmean(study.ends(arm)):.2f}, {verdict} by {against}")
    entries = {arm: fmean(study.ends(arm, "entries")) for arm in study.rows}
    cost = fmean(study.ends("alone", "returns")) - fmean(study.ends("scores", "returns"))
    return (
        f"**Without feedback a game is worth {alone:.2f} to the person; {'; '.join(parts)}.** A game enters disliked "
        f"fields {entries['alone']:.2f}, {entries['scores']:.2f} and {entries['preferences']:.2f} times. The detour "
        f"costs {cost:.2f} of the game's own return (scores)."
    )


def what_was_done(study: "Study", n: int) -> str:
    """Return a description of the runs."""
    size, facts, libraries = study.size, machine(), versions()
    rows = [row for rows in study.rows.values() for row in rows]
    judged = [row for row in rows if row["arm"] != "alone"]
    records = {arm: median(row["records"] for row in study.rows[arm]) for arm in ("scores", "preferences")}
    looked = {arm: median(row["looked_at"] for row in study.rows[arm]) for arm in ("scores", "preferences")}
    return (
        "The shipped policy gradient: an agent on a grid of 5 x 5 fields has to find the goal in a corner, for 1, at "
        "0.05 a move and 0.1 a wall. The person dislikes four fields of the row in the middle, which lies across the "
        f"way; the row's first field is the way round. The reward knows nothing of it. {n} seeds, three arms of each, "
        f"{size.steps} steps of {size.games} games on each of 2 CPU ranks.\n\n"
        f"Every {size.show_every} steps rank 0 writes out its games. A scripted person looks at those of the steps "
        f"{size.judged_from} to {size.judged_until}, and sends what it thinks through the gateway, one request a step: "
        f"a score (1, or minus the number of entries, {person.MOST_ENTRIES} at most) of {size.judged} games, or which "
        f"of two games it prefers, of {size.judged} pairs, but not of those that it finds equal. {person.ERRS:.0%} of "
        f"its judgements are the opposite of what it thinks. A run was sent {records['scores']:.0f} scores of "
        f"{looked['scores']:.0f} games, or {records['preferences']:.0f} preferences after {looked['preferences']:.0f} "
        f"games (medians); the first was drawn at step {median(row['first_step'] for row in judged):.0f} (median; "
        f"{min(row['first_step'] for row in judged)} to {max(row['first_step'] for row in judged)}). The knob "
        "`feedback/weight` was 1.\n\n"
        "What the person wants of a game: its return, less 1 for each entry of a disliked field.\n\n"
        f"A run took {median(row['seconds'] for row in rows):.0f} s (median, from submit to end). Machine: "
        f"{facts['cpu']}, {facts['cores']} cores, shared with other work; Python {libraries['python']}, torch "
        f"{libraries['torch']}."
    )


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def ends(study: "Study") -> str:
    """Return the table of the ends by arm."""
    rows = []
    for arm in study.rows:
        values = [study.ends(arm, what) for what in (*MEASURED, "reached")]
        rows.append([arm, *(f"{fmean(each):.3f} ({min(each):.3f} to {max(each):.3f})" for each in values)])
    return table(["arm", *MEASURED.values(), "share that reaches the goal"], rows)


def differences(study: "Study") -> str:
    """Return the paired differences of each arm to the one without feedback."""
    rows = []
    for arm in (each for each in study.rows if each != "alone"):
        pairs = zip(study.ends(arm), study.ends("alone"), strict=True)
        p_value = wilcoxon([one - another for one, another in pairs])
        cells = [str(study.difference(arm, what)) for what in MEASURED]
        rows.append([f"{arm} - alone", *cells, f"{p_value:.3f}"])
    return table(["", *MEASURED.values(), "p, of what the person wants"], rows)


def targets(result: Result) -> str:
    """Return the table of targets and verdicts."""
    names = {
        "scores_minus_alone_low": "lower end of the interval of what the person wants, with scores less without",
        "preferences_minus_alone_low": "the same, with preferences",
        "reached_least": "share of the last games that reach the goal; the worst run",
        "records_lost_or_doubled": "records lost or doubled",
    }
    rows = []
    for name, label in names.items():
        bound = result.targets[name]
        limit = f"at least {bound['min']:g}" if "min" in bound else f"at most {bound['max']:g}"
        rows.append([label, f"{result.figures[name]:.3g}", limit, result.verdict_on(name)])
    return table(["", "measured", "target", ""], rows)


def draw(study: "Study", folder: Path, say: Say) -> list[str]:
    """Draw the figure into a folder, and return the name of its file; none without matplotlib."""
    pyplot: Any = open_pyplot(say)
    if pyplot is None:
        return []
    figure, both = pyplot.subplots(1, 2, figsize=(WIDTH_IN, HEIGHT_IN), layout="constrained")
    for axes, what in zip(both, ("wanted", "entries"), strict=True):
        for arm, rows in study.rows.items():
            mean_and_range(axes, [row["curves"][what] for row in rows], label=arm, color=COLORS[arm])
        for step in (study.size.judged_from, study.size.judged_until):
            axes.axvline(step, color="black", linewidth=0.8, linestyle=":")
        axes.set_xlabel("step; dotted: first and last judged one")
        axes.set_ylabel(f"{MEASURED[what]}, a game")
    both[0].legend(fontsize=8, title=f"mean and range of {len(study.rows['alone'])} seeds", title_fontsize=8)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / NAME, metadata={"Date": None})
    pyplot.close(figure)
    return [NAME]
