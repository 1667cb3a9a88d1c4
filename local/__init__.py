"""The embedded stack: simulated Elevate, AWS emulator and deploy, on one machine."""
