"""OpenAI's Images API: payloads translated into drafts, answers and streams translated back."""
