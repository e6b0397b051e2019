"""The command line: one short function a verb. Heavy imports happen inside the functions."""
