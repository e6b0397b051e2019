"""What a finished run can do, measured on held-out rows."""
