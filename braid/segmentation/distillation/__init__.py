"""Training a student on the predictions of its teacher."""
