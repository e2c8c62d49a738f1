"""The protocols, one module each: what a consumer sends and what it reads. Each has `router(service)`."""
