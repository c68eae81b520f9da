"""Batch transcription with Whisper: audio in, transcripts out, from a folder or from S3."""

__version__ = "0.1.0"
