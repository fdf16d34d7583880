"""ONNX: models of one stage and of the whole decoder, and the files they are written to."""
