"""The branches of a run on its page: a tree of lines, each with what was changed on it and how far it came."""

import streamlit as st

from control_plane.api.handle import RunSummary, Snapshot
from control_plane.api.sentences import whence
from control_plane.compare.comparison import TreeBranch
from control_plane.compare.lineage import depths
from control_plane.core.model.records import Parent
from ui.labels import escape, plain
from ui.live import LiveRun
from ui.panels.rollback import adopt_button, on_button
from ui.views import addresses

MAX_CHANGES = 4
"""The newest changes of a branch; the journal has them all."""


def branches(live: LiveRun, snapshot: Snapshot) -> None:
    """The tree. A run that has one branch, no parent and no children has nothing to show."""
    found = live.refresh_tree()
    if found is None or (len(found.branches) < 2 and found.parent is None and not found.children):
        return
    st.markdown("**Branches**")
    if found.parent is not None:
        _parent(found.parent)
    depth = depths(each.branch for each in found.branches)
    with st.container(gap=None, key="branch_rows"):
        for each in found.branches:
            _row(each, depth[each.branch.branch], snapshot)
            for child in found.children:
                if child.parent is not None and child.parent.branch == each.branch.branch:
                    _child(child, child.parent, snapshot)
    sides = [found.run if each.branch.head else f"{found.run}:{each.branch.branch}" for each in found.branches]
    if len(sides) > 1:
        st.page_link(
            addresses.compare(), label="Compare them", icon=":material/compare_arrows:", query_params={"of": sides[:8]}
        )


def _row(found: TreeBranch, depth: int, snapshot: Snapshot) -> None:
    key = f"branch_row_{found.branch.branch}"
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key=key):
        st.html(row(found, depth), width="stretch")
        if found.branch.branch != snapshot.branch and not snapshot.closed:
            on_button(found.branch.branch)


def row(found: TreeBranch, depth: int) -> str:
    """One branch as HTML."""
    view = found.branch
    parts = [f"<b>{escape(view.branch)}</b>" + (" <em>head</em>" if view.head else "")]
    if view.origin is not None and view.origin.kind == "adopted":
        parts.append(f"adopted from {escape(whence(view.origin))}, to step {view.reached_step:,}")
    elif view.parent is None:
        parts.append(f"to step {view.reached_step:,}")
    else:
        parts.append(f"from step {view.step:,} of {escape(view.parent)} to step {view.reached_step:,}")
    if found.best is not None:
        parts.append(f"best {escape(found.best.name)} {found.best.value:.4g} at step {found.best.step:,}")
    lines = [" · ".join(parts)]
    lines += [f"<span>began with {escape(', '.join(view.first))}</span>"] if view.first else []
    changes = [f"{escape(each.what)} at step {each.step:,}" for each in found.changes[-MAX_CHANGES:]]
    older = f"{len(found.changes) - MAX_CHANGES} others, " if len(found.changes) > MAX_CHANGES else ""
    lines += [f"<span>then {older}{', '.join(changes)}</span>"] if changes else []
    return f'<div class="branch" style="margin-left:{1.4 * depth:g}rem">{"".join(lines)}</div>'


def _child(child: RunSummary, parent: Parent, snapshot: Snapshot) -> None:
    where = f"{parent.kind} at step {parent.step:,}" if parent.kind == "fork" else "replay from the beginning"
    label = f"{plain(child.run)} · {where} · {child.status}, step {child.step:,}"
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key=f"branch_row_of_{child.run}"):
        st.page_link(
            addresses.run(),
            label=label,
            icon=":material/call_split:",
            query_params={"run": child.run},
            width="stretch",
        )
        if parent.kind == "fork" and not snapshot.closed:
            adopt_button(child.run)


def _parent(parent: Parent) -> None:
    if parent.kind == "fork":
        label = f"A fork of {plain(parent.run)}, branch {plain(parent.branch)}, at step {parent.step:,}"
    else:
        label = f"Does again what {plain(parent.run)} did"
    st.page_link(addresses.run(), label=label, icon=":material/call_split:", query_params={"run": parent.run})
