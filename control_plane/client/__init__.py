"""HTTP client of the gateway, for the CLI, the console and the agent.

    with SteerwayClient.from_settings(settings()) as client:
        receipt = client.submit(run, SetLearningRate(value=3e-5), reason="loss plateaued")
        view = client.wait_settled(run, receipt.uuid, timeout_s=60)

Errors have the class that the control server raised (`Refused` and below). Without an answer, or if the answer is not
a gateway's, the error is `Unavailable`: the request may or may not have taken effect. `submit` then retries with the
same uuid, so a command is accepted exactly once.
"""

from control_plane.client.steering import LEAST_SUBMIT_TRIES, NotSettledYet, SteerwayClient

__all__ = ["LEAST_SUBMIT_TRIES", "NotSettledYet", "SteerwayClient"]
