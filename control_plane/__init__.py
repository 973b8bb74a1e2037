"""Control plane: commands, journal, control server, gateway, agent and CLI."""
