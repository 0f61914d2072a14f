"""The student as people take it away: a folder, one class, ONNX, pictures in and masks out."""
