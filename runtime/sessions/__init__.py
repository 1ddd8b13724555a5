"""One engine per file behind one Protocol; an engine is imported only when its file is opened."""

from runtime.sessions.base import Session, check_input, engine_for, open_session

__all__ = ["Session", "check_input", "engine_for", "open_session"]
