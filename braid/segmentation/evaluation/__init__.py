"""Agreement, calibration, cost and reports."""
