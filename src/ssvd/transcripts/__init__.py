"""Transcripts of recordings as text, JSON and subtitles."""
