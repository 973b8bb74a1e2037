"""HTTP gateway: a stateless FastAPI app with tokens, admission control, REST routes and a WebSocket stream."""
