"""Proofs that tests can fail: what is taken away (`store`, `audio`, `system`), and who does it (`__main__`)."""
