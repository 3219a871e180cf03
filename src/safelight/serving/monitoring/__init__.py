"""What operations see: metrics for Prometheus, traces for OpenTelemetry. Others state facts; here they are counted."""
