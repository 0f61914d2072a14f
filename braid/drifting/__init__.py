"""One-step refinement of keyframe interpolation, trained by drifting in feature space."""
