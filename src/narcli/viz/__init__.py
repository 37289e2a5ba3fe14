"""Pictures of orders and runs."""
