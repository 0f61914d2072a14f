"""The student beside its teacher, controls and baselines: tables, figures, cost."""
