"""audio: from the microphone to finished files. Touches the sound device, the spool and the live state; no network."""
