"""Tests of run_transcription.engines.features."""

import librosa
import numpy as np
import pytest
import torch
from transformers import WhisperFeatureExtractor

from run_transcription.engines.features import LogMel, mel_filters

SECOND = 16_000


def _windows():
    """Make a full window of noise, a chirp of odd length, silence, one sample, and clipping."""
    rng = np.random.default_rng(7)
    time = np.arange(3 * SECOND + 77) / SECOND
    return [
        (rng.standard_normal(30 * SECOND) * 0.1).astype(np.float32),
        (0.5 * np.sin(2 * np.pi * (100 + 1000 * time) * time)).astype(np.float32),
        np.zeros(SECOND, np.float32),
        np.full(1, 0.3, np.float32),
        np.clip(rng.standard_normal(SECOND) * 5, -1, 1).astype(np.float32),
    ]


@pytest.mark.parametrize("mels", [80, 128])
def test_filters_are_those_of_librosa(mels):
    """The filters are librosa's Slaney filters, with which Whisper was trained, for both sizes of Whisper."""
    np.testing.assert_allclose(mel_filters(mels), librosa.filters.mel(sr=16_000, n_fft=400, n_mels=mels), atol=1e-7)


@pytest.mark.parametrize("mels", [80, 128])
def test_features_equal_those_of_transformers(mels):
    """Features of a batch equal WhisperFeatureExtractor's within 1e-4, whatever the windows' lengths."""
    windows = _windows()
    reference = WhisperFeatureExtractor(feature_size=mels)(windows, sampling_rate=16_000, return_tensors="np")
    found = LogMel(mels, 3000, torch.device("cpu"))(windows)
    assert found.dtype == torch.float32
    assert found.shape == (len(windows), mels, 3000)
    np.testing.assert_allclose(found.numpy(), reference["input_features"], atol=1e-4)


def test_features_equal_those_of_librosa():
    """An independent path, librosa's spectrogram, gives the same features."""
    window = _windows()[0]
    power = librosa.feature.melspectrogram(
        y=window, sr=16_000, n_fft=400, hop_length=160, n_mels=80, pad_mode="reflect"
    )
    log = np.log10(np.maximum(power[:, :-1], 1e-10))
    expected = (np.maximum(log, log.max() - 8) + 4) / 4
    np.testing.assert_allclose(LogMel(80, 3000, torch.device("cpu"))([window])[0].numpy(), expected, atol=1e-4)


def test_a_window_does_not_depend_on_its_neighbours():
    """The loudest window of a batch doesn't set the floor of the others."""
    windows = _windows()
    log_mel = LogMel(80, 3000, torch.device("cpu"))
    alone = torch.cat([log_mel([window]) for window in windows])
    torch.testing.assert_close(log_mel(windows), alone, atol=1e-5, rtol=0)


def test_the_audio_is_padded_and_not_the_features():
    """After a short window there is silence, which in log-mel is the floor, not zero."""
    features = LogMel(80, 3000, torch.device("cpu"))([np.full(SECOND, 0.1, np.float32)])
    floor = features.max() - 2.0  # 80 dB under the loudest
    torch.testing.assert_close(features[0, :, 200:], floor.expand(80, 2800))


def test_a_window_that_is_too_long_is_refused():
    """Nothing is cut off in silence: more than the encoder's window is an error."""
    with pytest.raises(ValueError, match="480001"):
        LogMel(80, 3000, torch.device("cpu"))([np.zeros(30 * SECOND + 1, np.float32)])
