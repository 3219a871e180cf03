from tests.tiny_models import checkpoint, model

__all__ = ["checkpoint", "model"]
