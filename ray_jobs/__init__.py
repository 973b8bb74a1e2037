"""Training side: what a Ray job runs on its driver and on each rank."""
