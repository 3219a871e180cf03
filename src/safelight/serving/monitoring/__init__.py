"""Monitoring: turns events and answers into Prometheus metrics and OpenTelemetry traces."""
