"""Script of the run that was watched: `steer submit benchmarks/studies/human/watched.yaml`, then `steer set` on it.

It trains what the study trains, on the seed that the interventions were recorded on.
"""

import time

import torch

from benchmarks.studies.human import plan
from benchmarks.studies.human.script import Script
from benchmarks.studies.human.weights import pretrained

if __name__ == "__main__":
    torch.set_num_threads(1)
    script = Script(plan.START, plan.RECORDED_SEED, plan.STEPS, pretrained()["state"])
    print(f"ready after {time.process_time():.1f} s of processor time", flush=True)
    script.train()
