"""Commands about clusters and gateways: which of them a command talks to."""
