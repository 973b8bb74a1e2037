"""Control server as a Ray actor, and its remote client: the only control-plane code that imports Ray, but deploy."""
