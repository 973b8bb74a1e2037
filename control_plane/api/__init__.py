"""Messages, ports and sentences that server, gateway, clients and trainers share."""
