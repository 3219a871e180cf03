"""The application: every route and every part, opened with the server and closed with it; `run` serves it, and
`connections` bounds who may come in."""
