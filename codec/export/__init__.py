"""Export of codecs to ONNX, torch.export, OpenVINO and Hugging Face, and import from Hugging Face."""
