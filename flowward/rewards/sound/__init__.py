"""Rewards on waveforms: loudness, silence, tempo, and CLAP."""
