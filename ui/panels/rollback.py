"""Rollback, branch switch and adoption: buttons, and a dialog that explains the command and sends it.

The buttons are in fragments that refresh; the page itself opens the dialog, so that no refresh closes it.
"""

import streamlit as st
from pydantic import ValidationError

from control_plane.api.messages import BranchView, Snapshot
from control_plane.api.sentences import A_BRANCH_NAME
from control_plane.core.model.branch_tree import free_name
from control_plane.core.model.intents import First, Rollback, SetLearningRate
from control_plane.core.model.intents.server import AdoptCheckpoint
from control_plane.core.model.records import CheckpointCommitted
from ui import addresses
from ui.labels import complaint, plain
from ui.live import LiveRun
from ui.sending import fork, restart, send

CHOSEN = "going_back"
BACK, SWITCH, FORK, ADOPT = (f":material/{name}:" for name in ("undo", "alt_route", "call_split", "call_merge"))


def back_button(checkpoint: str) -> None:
    """Draw the rollback button of a checkpoint."""
    _button("Roll back here", f"back/{checkpoint}", BACK, ("checkpoint", checkpoint))


def newest_trusted(snapshot: Snapshot) -> CheckpointCommitted | None:
    """Return the newest trusted checkpoint of the branch that is trained."""
    own = [saved for saved in snapshot.checkpoints if saved.health == "trusted" and saved.branch == snapshot.branch]
    return max(own, key=lambda saved: (saved.step, saved.generation), default=None)


def rollback_to_trusted(snapshot: Snapshot) -> None:
    """Draw the rollback button of the newest trusted checkpoint, where a newer one is not trusted."""
    trusted = newest_trusted(snapshot)
    own = [saved for saved in snapshot.checkpoints if saved.branch == snapshot.branch]
    if trusted is not None and any(saved.step > trusted.step for saved in own):
        _button("Roll back to the newest trusted one", "back/trusted", BACK, ("checkpoint", trusted.checkpoint))


def on_button(branch: str) -> None:
    """Draw the switch button of a branch that is not the head."""
    _button("Switch to this branch", f"on/{branch}", SWITCH, ("branch", branch))


def fork_button(checkpoint: str) -> None:
    """Draw the button that starts a new run from a checkpoint."""
    _button("Fork", f"fork/{checkpoint}", FORK, ("new run", checkpoint))


def adopt_button(fork: str) -> None:
    """Draw the adoption button of a fork."""
    _button("Adopt", f"adopt/{fork}", ADOPT, ("fork", fork))


def _button(label: str, key: str, icon: str, choice: tuple[str, str]) -> None:
    if st.button(label, key=key, icon=icon, type="tertiary"):
        st.session_state[CHOSEN] = choice
        st.rerun()


def dialog(live: LiveRun, snapshot: Snapshot) -> None:
    """Open the dialog of the button that was pressed. Must be called outside of all fragments."""
    what, name = st.session_state.get(CHOSEN, ("", ""))
    checkpoint = next((saved for saved in snapshot.checkpoints if saved.checkpoint == name), None)
    branch = next((view for view in snapshot.branches if view.branch == name), None)
    if what == "new run" and checkpoint is not None:
        title = f"Fork from step {checkpoint.step:,}"
        st.dialog(title, icon=FORK, on_dismiss=_forget)(_fork)(live, snapshot, checkpoint)
    elif what == "checkpoint" and checkpoint is not None:
        title = f"Roll back to step {checkpoint.step:,}"
        st.dialog(title, icon=BACK, on_dismiss=_forget)(_roll_back)(live, snapshot, checkpoint)
    elif what == "branch" and branch is not None:
        st.dialog(f"Switch to {plain(name)}", icon=SWITCH, on_dismiss=_forget)(_switch)(live, snapshot, branch)
    elif what == "fork":
        st.dialog("Adopt a fork", icon=ADOPT, on_dismiss=_forget)(_adopt)(live, snapshot, name)


def _forget() -> None:
    st.session_state.pop(CHOSEN, None)


def _fork(live: LiveRun, snapshot: Snapshot, saved: CheckpointCommitted) -> None:
    this_one = "stays as it ended" if snapshot.closed else "goes on"
    st.write(
        f"A new run begins at **{plain(saved.checkpoint)}**, at the same position in the data. This one {this_one}."
    )
    _trust(snapshot, saved)
    with st.form("fork", border=False):
        rate = st.text_input("Learning rate of the fork", key="fork_rate", placeholder="optional: otherwise as saved")
        pressed = st.form_submit_button("Start the fork", type="primary", icon=FORK)
    if not pressed:
        return
    try:
        first = first_rate(rate or "")
    except ValueError as error:
        st.error(plain(str(error)), icon=":material/block:")
        return
    run, refusal = fork(live.run, saved.checkpoint, first)
    if refusal is not None:
        st.error(plain(refusal), icon=":material/block:")
    elif run is not None:
        st.success(f"Run {plain(run)} was started.", icon=FORK)
        st.page_link(addresses.run(), label=f"Open {plain(run)}", icon=FORK, query_params={"run": run})


def _roll_back(live: LiveRun, snapshot: Snapshot, saved: CheckpointCommitted) -> None:
    st.write(_leaving(snapshot), f"It continues from **{plain(saved.checkpoint)}** as a new branch.")
    _trust(snapshot, saved)
    with st.form("go_back", border=False):
        name = st.text_input("Name of the branch", key="back_name", placeholder="optional: otherwise a number")
        rate = st.text_input("Learning rate from there on", key="back_rate", placeholder="optional: otherwise as saved")
        reason = st.text_input("Reason", key="back_reason", max_chars=500, placeholder="optional, kept in the journal")
        pressed = st.form_submit_button("Roll back", type="primary", icon=BACK)
    if pressed:
        try:
            _send(live, back_to(saved.checkpoint, name or "", rate or ""), reason or "")
        except ValueError as error:
            st.error(plain(str(error)), icon=":material/block:")


def _trust(snapshot: Snapshot, saved: CheckpointCommitted) -> None:
    """Draw whether the checkpoint is trusted, and a better one if it is not."""
    if saved.health == "trusted":
        st.caption("Trusted: every check was green when it was saved.")
    elif saved.health == "suspect":
        reasons = ", ".join(reason.replace("_", " ") for reason in saved.health_reasons) or "an alert"
        better = newest_trusted(snapshot)
        hint = f" The newest trusted one is **{plain(better.checkpoint)}**, step {better.step:,}." if better else ""
        st.warning(f"Suspect: it was saved during {plain(reasons)}.{hint}", icon=":material/gpp_maybe:")


def _switch(live: LiveRun, snapshot: Snapshot, branch: BranchView) -> None:
    at = branch.newest_checkpoint or branch.checkpoint or "its beginning"
    st.write(_leaving(snapshot), f"It continues **{plain(branch.branch)}** from {plain(at)}.")
    reason = st.text_input("Reason", key="on_reason", max_chars=500, placeholder="optional, kept in the journal")
    if st.button("Switch", type="primary", icon=SWITCH, key="on_send"):
        _send(live, Rollback(branch=branch.branch), reason or "")


def _adopt(live: LiveRun, snapshot: Snapshot, fork: str) -> None:
    then = (
        "A new job resumes the run on that branch."
        if snapshot.closed
        else "The training stays on its branch: switch to the new one afterwards."
    )
    st.write(
        f"The newest checkpoint of **{plain(fork)}** becomes the start of a new branch of **{plain(snapshot.run)}**. "
        f"{then} The run's settings do not change."
    )
    with st.form("adopt", border=False):
        name = st.text_input("Name of the branch", key="adopt_name", placeholder="optional: otherwise a number")
        reason = st.text_input("Reason", key="adopt_reason", max_chars=500, placeholder="optional, kept in the journal")
        pressed = st.form_submit_button("Adopt", type="primary", icon=ADOPT)
    if pressed:
        try:
            _send(live, adoption(fork, (name or "").strip() or _branch_for(snapshot)), reason or "")
        except ValueError as error:
            st.error(plain(str(error)), icon=":material/block:")


def adoption(fork: str, name: str) -> AdoptCheckpoint:
    """Return the adoption in the form. Raises `ValueError` with a message."""
    try:
        return AdoptCheckpoint(run=fork, branch=name.strip() or None)
    except ValidationError:
        raise ValueError(_no_name(name)) from None


def _branch_for(snapshot: Snapshot) -> str:
    """Return the name of an adopted branch: a run that has ended begins on it, and needs to know it before."""
    return free_name([view.branch for view in snapshot.branches]) if snapshot.closed else ""


def _no_name(name: str) -> str:
    return f"{name} is not a valid name of a branch: it has {A_BRANCH_NAME}."


def _leaving(snapshot: Snapshot) -> str:
    """Return a sentence about the branch that is left."""
    head = next((view for view in snapshot.branches if view.branch == snapshot.branch), None)
    at = head.newest_checkpoint if head else None
    later = f"can be continued from {plain(at)}" if at else "has no checkpoint of its own yet"
    if snapshot.closed:
        return (
            f"The run ended on **{plain(snapshot.branch)}** at step {snapshot.step:,}; that branch stays, and {later}. "
            "A new job resumes the run."
        )
    return (
        f"The training leaves **{plain(snapshot.branch)}** at step {snapshot.step:,}. That branch stays, and {later}."
    )


def back_to(checkpoint: str, name: str, rate: str) -> Rollback:
    """Return the rollback in the form. Raises `ValueError` with a message."""
    first = first_rate(rate)
    try:
        return Rollback(checkpoint=checkpoint, branch=name.strip() or None, first=first)
    except ValidationError:
        raise ValueError(_no_name(name)) from None


def first_rate(rate: str) -> tuple[First, ...]:
    """Return the commands that set this learning rate at the start; none if it is empty. Raises `ValueError`."""
    try:
        return (SetLearningRate.model_validate({"value": _number(rate)}),) if rate.strip() else ()
    except ValidationError as error:
        raise ValueError(complaint(error)) from None


def _number(text: str) -> float | str:
    try:
        return float(text.strip())
    except ValueError:
        return text.strip()


def _send(live: LiveRun, intent: Rollback | AdoptCheckpoint, reason: str) -> None:
    was_closed = live.snapshot is not None and live.snapshot.closed
    carry_out = restart if was_closed else send
    refusal = carry_out(live.run, intent, reason.strip() or None)
    if refusal is not None:
        st.error(plain(refusal), icon=":material/block:")
        return
    st.toast(f"{plain(intent.describe())}: accepted", icon=SWITCH)
    _forget()
    live.refresh(max_age_s=0)
    st.rerun()
