"""One module per protocol: its requests, its responses, and `router(service)`."""
