"""What a request passes through, and the routes."""
