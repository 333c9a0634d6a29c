"""Codecs for other software, and from it: ONNX, torch.export, OpenVINO, Hugging Face."""
