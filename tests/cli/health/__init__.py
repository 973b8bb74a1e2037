"""Commands about alerts and signs, against a gateway."""
