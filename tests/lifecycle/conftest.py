from tests.tiny_models import checkpoint, model, one_thread

__all__ = ["checkpoint", "model", "one_thread"]
