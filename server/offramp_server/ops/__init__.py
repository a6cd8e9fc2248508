"""What operators see: metrics, the HTTP side, logging."""
