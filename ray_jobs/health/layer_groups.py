"""Groups of layers: the blocks of a model, or its top-level modules where it has none.

    groups = layer_groups(model)       {"wte": [...], "h.0": [...], "h.1": [...], "ln_f": [...]}
    blocks = block_modules(model)      {"h.0": module, "h.1": module}

A block is a child of a list of modules of one class (torch's `ModuleList` or `Sequential`), the outermost such list on
the way from the root. The names of the groups are the modules' own, without what all blocks have in front of them.
"""

from collections import Counter
from collections.abc import Iterator

import torch

MAX_GROUPS = 64
"""Largest number of groups; in deeper models neighbouring blocks share one. It bounds what the ranks gather."""

MAX_NAME_CHARS = 40
"""Longest name of a group: with the name of its sign it must fit the name of a measurement, 64 characters."""

LEAST_BLOCKS = 2
ROOT = "model"
"""Group of parameters that the root module holds itself."""


def layer_groups(model: torch.nn.Module) -> dict[str, list[torch.nn.Parameter]]:
    """Return the trained parameters by group, in the model's order; at most `MAX_GROUPS`, none of them empty."""
    paths = _block_paths(model)
    found: dict[str, list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            found.setdefault(_group_of(name, paths), []).append(parameter)
    merged: dict[str, list[torch.nn.Parameter]] = {}
    names = short_names(list(found), paths)
    for path, new in zip(found, _merged(list(found), names, paths), strict=True):
        merged.setdefault(new, []).extend(found[path])
    return merged


def block_modules(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """Return the modules whose activations are looked at, by name: blocks, or else top-level modules; the root if it
    has no children. At most `MAX_GROUPS`, evenly spread."""
    paths = _block_paths(model) or [name for name, _ in model.named_children()]
    if not paths:
        return {ROOT: model}
    chosen = [paths[index * len(paths) // min(len(paths), MAX_GROUPS)] for index in range(min(len(paths), MAX_GROUPS))]
    return dict(zip(short_names(chosen, paths), map(model.get_submodule, chosen), strict=True))


def short_names(names: list[str], blocks: list[str]) -> list[str]:
    """Return the names without the prefix that all blocks share, at most `MAX_NAME_CHARS` long, each once."""
    trunk = _shared_prefix(blocks)
    short: list[str] = []
    for name in names:
        own = name.removeprefix(trunk)[-MAX_NAME_CHARS:]
        # Two long names may end alike.
        short.append(own if own not in short else f"{own[-(MAX_NAME_CHARS - 4) :]}#{len(short)}")
    return short


def _shared_prefix(blocks: list[str]) -> str:
    """Return what the blocks' lists have in front of them: `transformer.` of `transformer.h.0`, `transformer.h.1`."""
    lists = [block.split(".")[:-2] for block in blocks if "." in block]
    if not lists:
        return ""
    shared = [parts[0] for parts in zip(*lists, strict=False) if len(set(parts)) == 1]
    return ".".join([*shared, ""]) if shared else ""


def _block_paths(model: torch.nn.Module) -> list[str]:
    """Return the paths of all blocks, in the model's order; empty if there are none."""
    return list(_blocks_below(model, ""))


def _blocks_below(module: torch.nn.Module, path: str) -> Iterator[str]:
    for name, child in module.named_children():
        below = f"{path}{name}"
        if _is_list_of_blocks(child):
            yield from (f"{below}.{index}" for index, _ in child.named_children())
        else:
            yield from _blocks_below(child, f"{below}.")


def _is_list_of_blocks(module: torch.nn.Module) -> bool:
    """Return whether most children of a list are of one class that has children and parameters of its own."""
    if not isinstance(module, torch.nn.ModuleList | torch.nn.Sequential):
        return False
    children = list(module.children())
    alike, count = Counter(map(type, children)).most_common(1)[0] if children else (object, 0)
    composed = [child for child in children if type(child) is alike and any(True for _ in child.children())]
    return count >= LEAST_BLOCKS and 2 * count > len(children) and len(composed) == count and _has_parameters(composed)


def _has_parameters(modules: list[torch.nn.Module]) -> bool:
    return all(next(module.parameters(), None) is not None for module in modules)


def _group_of(parameter: str, blocks: list[str]) -> str:
    """Return the path of a parameter's block, or of the topmost module above it that has no blocks in it."""
    parts = parameter.split(".")[:-1]
    known = set(blocks)
    above = {".".join(block.split(".")[:depth]) for block in blocks for depth in range(1, block.count(".") + 1)}
    for depth in range(1, len(parts) + 1):
        path = ".".join(parts[:depth])
        if path in known or path not in above:
            return path
    return ".".join(parts) or ROOT


def _merged(paths: list[str], names: list[str], blocks: list[str]) -> list[str]:
    """Return the names of the groups, where neighbouring blocks share one if there are too many."""
    if len(names) <= MAX_GROUPS:
        return names
    known = set(blocks)
    inside = [index for index, path in enumerate(paths) if path in known]
    others = len(names) - len(inside)
    room = max(1, MAX_GROUPS - min(others, MAX_GROUPS // 2))
    merged = list(names)
    for indices in _chunks(inside, room):
        merged_name = _span_name(names[indices[0]], names[indices[-1]])
        for index in indices:
            merged[index] = merged_name
    rest = [index for index in range(len(names)) if index not in set(inside)]
    if others > MAX_GROUPS - room or not inside:
        for indices in _chunks(rest, MAX_GROUPS - (room if inside else 0)):
            for index in indices:
                merged[index] = _span_name(names[indices[0]], names[indices[-1]])
    return merged


def _chunks(indices: list[int], count: int) -> Iterator[list[int]]:
    size = -(-len(indices) // max(1, count))
    return (indices[start : start + size] for start in range(0, len(indices), max(1, size)))


def _span_name(first: str, last: str) -> str:
    """Return the name of several neighbours: `h.0-3` of `h.0` and `h.3`."""
    own = last.rpartition(".")[2] if first.rpartition(".")[0] == last.rpartition(".")[0] else last
    return first if first == last else f"{first}-{own}"[-MAX_NAME_CHARS:]
