"""Warm spares: idle worker processes that have imported all libraries, for a fast next start.

    keep_warm             in a rank: spares for the ranks, on every node
    WarmControllerHelper  in Ray Train's controller: a plain one on its node, for the actor that it makes at each start

A new rank spends most of its start-up on imports: seconds on a large machine, tens of seconds on a small one. Ray
keeps idle worker processes, and hands one out to an actor with the same runtime environment; it can start some ahead of
need (the raylet's `PrestartWorkers`). A hook in that environment names what a spare imports. All of this is an
optimization: if it fails, a start takes longer, and the log says so.
"""

import gc
import importlib
import logging
import os
import sys
import threading
import time
from typing import Any

from ray_jobs.driver import ray_internals
from ray_jobs.monitor.nccl import nccl_environment
from ray_jobs.process.timeouts import USER_CODE_S

log = logging.getLogger(__name__)

HOOK = "ray_jobs.driver.warm_spares.preload"
"""Setup hook that Ray runs at the start of a worker process whose environment names it."""

CODE = "STEERWAY_CODE"
"""Variable with the folders of the user's modules, as PATH lists folders."""

PRELOADED = (
    "torch",
    "deepspeed",
    # Probes with a compiler for what can be built, when it is first imported.
    "deepspeed.ops",
    # Imported when an engine is built; drags in all of PyTorch's compiler.
    "deepspeed.runtime.zero.muon.original_muon",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "deepspeed.module_inject.auto_ep_layer",
    "accelerate",
    "transformers.trainer",
    "transformers.integrations.deepspeed",
    "transformers.models.gpt2.modeling_gpt2",
    "ray.train.torch",
    ray_internals.WORKER_MODULE,
    "ray_jobs.hf.trainer",
    "ray_jobs.workloads.gpt2",
)

KEPT_FOR_S = 7 * 24 * 3600
"""Longer than most runs: Ray would end idle workers earlier. An unused spare costs its memory until its run ends."""

LOOK_FOR_NODES_EVERY_S = 5.0

HELPER_AFTER_S = 10.0
"""Delay after the start of the ranks' training function: by then they make steps."""

REQUEST_TIMEOUT_S = 10.0


def preload() -> None:
    """Import the libraries of a rank. Nothing here may touch a GPU: this process has not been assigned one yet."""
    # PyTorch would otherwise ask the CUDA driver whether there is a GPU, and fix the visible ones for good.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    os.environ.setdefault("DS_ACCELERATOR", os.environ.get("STEERWAY_ACCELERATOR", "cpu"))
    for module in PRELOADED:
        try:
            importlib.import_module(module)
        except Exception:
            log.exception("a warm spare could not import %s", module)
    # A collection over the million objects of the libraries takes half a second, and a start makes several.
    gc.collect()
    gc.freeze()
    # Last: a module of the user's named as one of Ray's or Steerway's libraries must not be imported in its place.
    sys.path[:0] = [folder for folder in os.environ.get(CODE, "").split(os.pathsep) if folder]


def worker_environment(accelerator: str, user_code_s: float = USER_CODE_S) -> dict[str, str]:
    """Return the environment of ranks and spares; `accelerator` is DeepSpeed's name for it, `cpu` or `cuda`."""
    ours = {ray_internals.setup_hook_variable(): HOOK, "STEERWAY_ACCELERATOR": accelerator}
    return ours | (nccl_environment(user_code_s) if accelerator == "cuda" else {})


def keep_warm(count: int, after_s: float) -> None:
    """Keep `count` idle workers like this one on every node that can run ranks, including nodes that join later.

    To be called in a worker: its spares get its own runtime environment, and belong to its own job. Works in a
    background thread, for as long as this process lives; begins after `after_s`, so that a start does not compete with
    its own spares.
    """
    threading.Thread(target=_ask_every_node, args=(count, after_s), name="steerway-spares", daemon=True).start()


def _ask_every_node(count: int, after_s: float) -> None:
    import ray

    asked: set[str] = set()
    time.sleep(after_s)
    while True:
        for node in ray.nodes():
            # A node without CPUs, as a head often is, runs no ranks.
            if node["NodeID"] in asked or not node["Alive"] or not node["Resources"].get("CPU"):
                continue
            asked.add(node["NodeID"])
            _ask(node, count)
        time.sleep(LOOK_FOR_NODES_EVERY_S)


def _ask(node: dict[str, Any], count: int) -> None:
    try:
        ray_internals.prestart_workers(node, count, KEPT_FOR_S, REQUEST_TIMEOUT_S)
    except Exception as error:
        log.warning("cannot start warm spares on %s: %s", node["NodeManagerAddress"], str(error).splitlines()[0])
    else:
        log.info("requested %d warm spares on node %s", count, node["NodeID"][:8])


class WarmControllerHelper(ray_internals.WorkerGroupCallback):
    """Ray Train callback that requests an idle worker for the controller's own actor at the next start.

    At each start the controller makes a `SynchronizationActor` on its own node. If a process had to be started for it
    at that moment, it would take a core from the ranks that are being restored.
    """

    def after_worker_group_training_start(self, worker_group: Any) -> None:
        """Request it in a thread beside the controller's event loop, once the ranks have begun."""
        threading.Thread(target=_ask_for_a_helper, name="steerway-helper", daemon=True).start()


def _ask_for_a_helper() -> None:
    import ray

    time.sleep(HELPER_AFTER_S)
    own = ray.get_runtime_context().get_node_id()
    for node in ray.nodes():
        if node["NodeID"] == own:
            _ask(node, 1)
