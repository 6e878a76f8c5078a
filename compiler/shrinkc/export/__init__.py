"""The integer model as an ONNX graph of standard operators."""
