"""The main job on this machine alone: an embedded S3 and SQS, a small model that really transcribes, recordings."""
