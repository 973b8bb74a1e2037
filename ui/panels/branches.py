"""Branch tree of a run's page: each branch with its last step and its commands."""

import streamlit as st

from control_plane.api.messages import RunSummary, Snapshot
from control_plane.api.sentences import describe_left_out, describe_origin
from control_plane.compare.comparison import TreeBranch
from control_plane.compare.lineage import depths
from control_plane.core.model.records import Parent
from ui import addresses
from ui.labels import escape, plain
from ui.live import LiveRun
from ui.panels.rollback import adopt_button, on_button

MAX_CHANGES = 4
"""Number of listed commands of a branch, the newest; the journal has them all."""


def branches(live: LiveRun, snapshot: Snapshot) -> None:
    """Draw the tree, unless the run has one branch, no parent and no children."""
    tree = live.refresh_tree()
    if tree is None or (len(tree.branches) < 2 and tree.parent is None and not tree.children):
        return
    st.markdown("**Branches**")
    if tree.parent is not None:
        _parent(tree.parent)
    depth = depths(node.branch for node in tree.branches)
    with st.container(gap=None, key="branch_rows"):
        for node in tree.branches:
            _row(node, depth[node.branch.branch], snapshot)
            for child in tree.children:
                if child.parent is not None and child.parent.branch == node.branch.branch:
                    _child(child, child.parent, snapshot)
    sides = [tree.run if node.branch.head else f"{tree.run}:{node.branch.branch}" for node in tree.branches]
    if len(sides) > 1:
        st.page_link(
            addresses.compare(),
            label="Compare branches",
            icon=":material/compare_arrows:",
            query_params={"of": sides[:8]},
        )


def _row(node: TreeBranch, depth: int, snapshot: Snapshot) -> None:
    key = f"branch_row_{node.branch.branch}"
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key=key):
        st.html(row(node, depth), width="stretch")
        if node.branch.branch != snapshot.branch:
            on_button(node.branch.branch)


def row(node: TreeBranch, depth: int) -> str:
    """Return one branch as HTML."""
    view = node.branch
    parts = [f"<b>{escape(view.branch)}</b>" + (" <em>head</em>" if view.head else "")]
    if view.origin is not None and view.origin.kind == "adopted":
        parts.append(f"adopted from {escape(describe_origin(view.origin))}, to step {view.reached_step:,}")
    elif view.parent is None:
        parts.append(f"to step {view.reached_step:,}")
    else:
        parts.append(f"from step {view.step:,} of {escape(view.parent)} to step {view.reached_step:,}")
    if node.best is not None:
        parts.append(f"best {escape(node.best.name)} {node.best.value:.4g} at step {node.best.step:,}")
    lines = [" · ".join(parts)]
    lines += [f"<span>began with {escape(', '.join(view.first))}</span>"] if view.first else []
    changes = [f"{escape(change.what)} at step {change.step:,}" for change in node.changes[-MAX_CHANGES:]]
    older = f"{len(node.changes) - MAX_CHANGES} others, " if len(node.changes) > MAX_CHANGES else ""
    lines += [f"<span>then {older}{', '.join(changes)}</span>"] if changes else []
    return f'<div class="branch" style="margin-left:{1.4 * depth:g}rem">{"".join(lines)}</div>'


def _child(child: RunSummary, parent: Parent, snapshot: Snapshot) -> None:
    where = f"{parent.kind} at step {parent.step:,}" if parent.kind == "fork" else "replay from the beginning"
    label = f"{plain(child.run)} · {where}{_left_out(parent)} · {child.status}, step {child.step:,}"
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key=f"branch_row_of_{child.run}"):
        st.page_link(
            addresses.run(),
            label=label,
            icon=":material/call_split:",
            query_params={"run": child.run},
            width="stretch",
        )
        if parent.kind == "fork":
            adopt_button(child.run)


def _left_out(parent: Parent) -> str:
    """Return what a replay leaves out, to follow other words; empty if it leaves nothing out."""
    left_out = plain(describe_left_out(parent))
    return f" {left_out}" if left_out else ""


def _parent(parent: Parent) -> None:
    if parent.kind == "fork":
        label = f"A fork of {plain(parent.run)}, branch {plain(parent.branch)}, at step {parent.step:,}"
    else:
        label = f"A replay of {plain(parent.run)}{_left_out(parent)}"
    st.page_link(addresses.run(), label=label, icon=":material/call_split:", query_params={"run": parent.run})
