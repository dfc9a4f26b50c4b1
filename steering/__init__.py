"""Audio-language models that listen: measure the listening, steer the answer."""
