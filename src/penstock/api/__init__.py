"""An engine over HTTP: the OpenAI-compatible routes, health, metrics, keys and limits. Raw ASGI, no framework."""
