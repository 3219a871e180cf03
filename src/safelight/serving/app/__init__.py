"""The application: every route and every part, opened with the server and closed with it; `run` serves it."""
